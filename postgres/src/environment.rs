//! What PostgreSQL's programs are told of the environment that this process was started in.

use std::process::Command;

/// The variables that PostgreSQL's programs get from us, where we have them.
const VARIABLES: [&str; 3] = ["PATH", "LANG", "TZ"];

/// Leaves `command` nothing of this process's environment but [`VARIABLES`] and the locale's: every session
/// of a superuser can read what a PostgreSQL has, and what a service manager or an operator's shell says, a
/// token or a `PGOPTIONS`, is not meant for it.
pub(crate) fn clean_environment(command: &mut Command) {
    command.env_clear();
    let passed = |name: &std::ffi::OsStr| {
        VARIABLES.iter().any(|passed| name == *passed) || name.as_encoded_bytes().starts_with(b"LC_")
    };
    command.envs(std::env::vars_os().filter(|(name, _)| passed(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_what_is_on_the_list_and_nothing_else() {
        let mut command = Command::new("env");
        command.env("SECRET", "of the service");
        clean_environment(&mut command);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let names: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // A test is started with more than a few.
        assert!(names.contains(&"PATH") && std::env::vars_os().count() > names.len(), "{names:?}");
        assert!(names.iter().all(|name| VARIABLES.contains(name) || name.starts_with("LC_")), "{names:?}");
    }
}
