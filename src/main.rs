//! The `rustbalance` command.

fn main() -> std::process::ExitCode {
    rustbalance::cli::main()
}
