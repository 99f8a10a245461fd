//! Runs a pass of a search with the instructions of its path. The only `unsafe` of the project: a
//! call of a function that may use instructions which not every processor has.

use rustbalance_vanity::{Hit, Path, Search, portable};
#[cfg(target_arch = "x86_64")]
use rustbalance_vanity::{avx2, ifma};

/// Tests the keys of one pass, and returns those that were searched for.
pub fn pass(search: &mut Search) -> Vec<Hit> {
    let pass: unsafe fn(&mut Search) = match search.path() {
        #[cfg(target_arch = "x86_64")]
        Path::Ifma => ifma::pass,
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => avx2::pass,
        _ => portable::pass,
    };
    // SAFETY: `Search::new` refuses a path whose instructions this processor lacks.
    unsafe { pass(search) };
    search.hits()
}
