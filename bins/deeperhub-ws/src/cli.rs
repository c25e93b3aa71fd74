//! The command line: subcommands and what they do with the settings.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use clap_complete::Shell;

use crate::options::Options;
use crate::schema::Schema;
use crate::token::TokenArgs;
use crate::top::Top;

/// The program's name in messages, completions and the start line.
pub(crate) const NAME: &str = env!("CARGO_PKG_NAME");
/// The program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

const AFTER_HELP: &str = "\
Every flag is also an environment variable and a key of the file: --max-queue-bytes,
DEEPERHUB_MAX_QUEUE_BYTES, max_queue_bytes. Flags win over variables, variables over the file, the
file over the defaults. Durations are 500ms, 10s, 2m, 1h. What may be repeated is comma-separated in
a variable and a list in the file.

Exit codes: 0 done, 1 could not start or failed, 2 an error in flags, environment or file.";

/// What the program is asked to do.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Action {
    /// Serve clients; what the program does when it is given no subcommand
    Serve,
    /// Look at the configuration without serving
    #[command(subcommand)]
    Config(ConfigAction),
    /// Ask a running server whether it is ready: exit 0 if it is, 1 if not
    ///
    /// Reads --api-listen from flags, environment and file as the server does, and asks /health/ready there.
    Health,
    /// Print a token (JWT) for development, signed with the secret of --auth-secret-file
    ///
    /// A server with the same settings takes it: they are read from flags, environment and file as the server does,
    /// and the first of --auth-audience and --auth-issuer become its `aud` and `iss`. Who can read the secret can be
    /// any user: in production tokens come from what logs users in.
    Token(TokenArgs),
    /// Watch a running server: connections, rates, and its busiest topics and clients
    ///
    /// Reads --api-listen and --api-key from flags, environment and file as the server does, and asks its server API.
    Top(Top),
    /// Drive a running server and measure it: rates, latency, loss
    ///
    /// Run it on another machine than the server where you can: on the same one, both share the processors.
    Bench(Box<deeperhub_bench::Args>),
    /// Print a machine-readable description of what the server speaks
    Schema {
        /// What is described
        schema: Schema,
    },
    /// Print a completion script for a shell
    Completions {
        /// Shell that the script is for
        shell: Shell,
    },
}

/// What to do with the configuration.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigAction {
    /// Check flags, environment and file: exit 0 if they are valid, 2 if not
    Check,
    /// Print the effective configuration and where each value came from
    Show,
    /// Print a file with every setting, what it means and its default
    Default,
}

/// Subcommands and flags that do not start a server.
const OTHERS: [&str; 12] = [
    "config",
    "health",
    "token",
    "top",
    "bench",
    "schema",
    "completions",
    "help",
    "--help",
    "-h",
    "--version",
    "-V",
];

/// Returns `true` if the command line certainly starts a server or is rejected. A cheap check
/// before parsing: a value that equals the name of another subcommand gives `false`.
pub(crate) fn serves(arguments: impl IntoIterator<Item = OsString>) -> bool {
    !arguments.into_iter().skip(1).any(|argument| OTHERS.iter().any(|other| argument == *other))
}

/// The whole command line.
pub(crate) fn command() -> Command {
    let command = Action::augment_subcommands(Command::new(NAME))
        .version(VERSION)
        .about("A realtime WebSocket hub: topics, server API, event bus, metrics")
        .after_help(AFTER_HELP)
        .max_term_width(100)
        .disable_help_subcommand(true)
        .mut_subcommand("serve", with_options)
        .mut_subcommand("config", |config| {
            config
                .disable_help_subcommand(true)
                .mut_subcommand("check", with_options)
                .mut_subcommand("show", with_options)
        })
        .mut_subcommand("bench", |bench| bench.disable_help_subcommand(true))
        .mut_subcommand("token", |token| {
            let own: Vec<_> = token.get_arguments().map(|argument| argument.get_id().clone()).collect();
            with_options(token).mut_args(move |flag| {
                let id = flag.get_id();
                let matters = own.contains(id)
                    || ["config", "auth_secret_file", "auth_audience", "auth_issuer"].contains(&id.as_str());
                flag.hide(!matters)
            })
        })
        .mut_subcommand("top", |top| {
            with_options(top).mut_args(|flag| {
                let matters =
                    ["config", "api_listen", "api_key", "interval"].contains(&flag.get_id().as_str());
                flag.hide(!matters)
            })
        })
        .mut_subcommand("health", |health| {
            // It takes the server's own flags, so that both can be started alike, and shows those that matter.
            with_options(health).mut_args(|flag| {
                let matters = ["config", "api_listen"].contains(&flag.get_id().as_str());
                flag.hide(!matters)
            })
        });
    // `--rate-limit -1` is to be told what is right, not that `-1` is no flag.
    allow_negative_numbers(with_options(command))
}

/// Adds the settings' flags; the command keeps what it says about itself.
fn with_options(command: Command) -> Command {
    // The derived function would take the doc comment of `Options` for the command's.
    let about = command.get_about().cloned().unwrap_or_default();
    let long_about = command.get_long_about().cloned().unwrap_or_else(|| about.clone());
    Options::augment_args(command).about(about).long_about(long_about)
}

fn allow_negative_numbers(command: Command) -> Command {
    command
        .mut_args(
            |flag| if flag.get_action().takes_values() { flag.allow_negative_numbers(true) } else { flag },
        )
        .mut_subcommands(allow_negative_numbers)
}

/// What is asked for, and the flags before and after the subcommand's name.
///
/// # Errors
///
/// Flags before `bench` and `completions`, which have no use for them.
pub(crate) fn action(matches: &ArgMatches) -> Result<(Action, Vec<&ArgMatches>), clap::Error> {
    let mut flags = vec![matches];
    while let Some((_, inner)) = flags.last().and_then(|outer| outer.subcommand()) {
        flags.push(inner);
    }
    let action = match matches.subcommand() {
        None => Action::Serve,
        Some(_) => Action::from_arg_matches(matches)?,
    };
    if matches!(action, Action::Bench(_) | Action::Schema { .. } | Action::Completions { .. })
        && is_any_typed(matches)
    {
        let name = matches.subcommand_name().unwrap_or_default();
        let message = format!("{name} takes no flags of the server before its name");
        return Err(command().error(ErrorKind::ArgumentConflict, message));
    }
    Ok((action, flags))
}

fn is_any_typed(matches: &ArgMatches) -> bool {
    matches.ids().any(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<Action>) {
        let found = command().try_get_matches_from(line.split(' ')).and_then(|matches| {
            let (action, _) = action(&matches)?;
            Ok(action)
        });
        assert_eq!(found.ok(), expected, "{line}");
    }

    fn check_token(line: &str) -> TokenArgs {
        let matches = command().get_matches_from(line.split(' '));
        match action(&matches) {
            Ok((Action::Token(token), _)) => token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn serving_is_the_default() {
        check("deeperhub-ws", Some(Action::Serve));
        check("deeperhub-ws --port 0", Some(Action::Serve));
        check("deeperhub-ws serve --port 0", Some(Action::Serve));
        check("deeperhub-ws --port 0 serve", Some(Action::Serve));
    }

    #[test]
    fn a_quick_look_knows_all_that_does_not_serve() {
        let serving = |line: &str| serves(line.split(' ').map(OsString::from));
        for subcommand in command().get_subcommands().map(Command::get_name) {
            assert_eq!(serving(&format!("deeperhub-ws --port 0 {subcommand}")), subcommand == "serve");
        }
        assert!(serving("deeperhub-ws") && serving("config --port 0"));
        assert!(!serving("deeperhub-ws --help") && !serving("deeperhub-ws -V"));
    }

    #[test]
    fn subcommands_take_the_servers_flags_before_and_after_their_name() {
        check("deeperhub-ws config check --port 1", Some(Action::Config(ConfigAction::Check)));
        check("deeperhub-ws --port 1 config show", Some(Action::Config(ConfigAction::Show)));
        check("deeperhub-ws health --api-listen off --rate-limit 5", Some(Action::Health));
        let token = check_token("deeperhub-ws --port 1 token --sub ada --auth-secret-file f --ttl 48h");
        assert!(format!("{token:?}").contains("ada"));
        check("deeperhub-ws top --api-listen 127.0.0.1:9 --interval 10ms", None);
        check("deeperhub-ws completions bash", Some(Action::Completions { shell: Shell::Bash }));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        check("deeperhub-ws --colour", None);
        check("deeperhub-ws paint", None);
        check("deeperhub-ws config", None);
        check("deeperhub-ws completions tcsh", None);
        check("deeperhub-ws completions bash --port 1", None);
        check("deeperhub-ws --port 1 completions bash", None);
        check("deeperhub-ws token", None);
        check("deeperhub-ws token --sub ada --ttl 0", None);
        check("deeperhub-ws token --sub ada --subscribe a..b", None);
        check("deeperhub-ws bench", None);
        check("deeperhub-ws bench paint", None);
        check("deeperhub-ws bench echo --port 1", None);
        check("deeperhub-ws --port 1 bench echo", None);
    }
}
