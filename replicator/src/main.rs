//! The `replicator` program; see `replicator --help`.

fn main() -> std::process::ExitCode {
    replicator::cli::main()
}
