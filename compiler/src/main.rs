//! The program `tfc`.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let start = Instant::now();
    ExitCode::from(tfc::cli::main(std::env::args_os().collect(), start))
}
