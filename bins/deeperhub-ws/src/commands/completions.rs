//! `completions`: completion scripts for shells.

use clap_complete::Shell;

use crate::cli::{self, NAME};

/// Returns the completion script for a shell.
pub(crate) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), NAME, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => repair_bash(&script),
        _ => script,
    }
}

/// Repairs the bash script that clap generates for a program with a hyphen in its name. The script
/// sets `deeperhub__ws__subcmd__config` but looks up `deeperhub__subcmd__ws__subcmd__config`, so
/// that it completes nothing after a subcommand.
fn repair_bash(script: &str) -> String {
    const SEPARATOR: &str = "__subcmd__";
    script.replace(
        &format!("{}{SEPARATOR}", NAME.replace('-', SEPARATOR)),
        &format!("{}{SEPARATOR}", NAME.replace('-', "__")),
    )
}
