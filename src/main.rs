//! The program `cvmfs-union`: everything is in the library.

fn main() -> std::process::ExitCode {
    cvmfs_union::cli::run()
}
