#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (rustbalance_fuzz::target("backup").run)(data);
});
