//! PostgreSQL's programs that come to an end by themselves, run with a deadline.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use runtime::task::Thread;

use super::InstanceError;

/// Runs a program to its end, at most for `patience`; returns what it printed. It is killed when it takes
/// longer.
pub(crate) fn run(
    program: &'static str,
    command: &mut Command,
    patience: Duration,
) -> Result<String, InstanceError> {
    run_with(program, command, Stdio::null(), patience)
}

/// The same, with this input.
pub(super) fn run_with(
    program: &'static str,
    command: &mut Command,
    input: Stdio,
    patience: Duration,
) -> Result<String, InstanceError> {
    let failed = |output: String| InstanceError::Program { program, output };
    let child = command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|e| failed(e.to_string()))?;
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let waiting = Thread::spawn("wait for a program", move || drop(done.send(child.wait_with_output())));
    let _waiting = waiting.map_err(|e| failed(e.to_string()))?;
    let output = ended.recv_timeout(patience).map_err(|_| {
        // Its process group is its own; it may end by itself just now.
        let _ = killpg(process, Signal::SIGKILL);
        failed(format!("it did not end within {} s", patience.as_secs()))
    })?;
    let output = output.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
