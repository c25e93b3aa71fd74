//! The command line: subcommands and their options.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use clap_complete::Shell;

use crate::commands::config::ConfigAction;
use crate::commands::schema::Schema;
use crate::commands::tail::TailArgs;
use crate::commands::token::TokenArgs;
use crate::config::effective::defaults;
use crate::config::help;
use crate::config::options::Options;

/// The program's name in messages, completions and the start line.
pub(crate) const NAME: &str = env!("CARGO_PKG_NAME");
/// The program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

const AFTER_HELP: &str = "\
Each flag is also an environment variable and a key of the file: --max-queue-bytes,
DEEPERHUB_MAX_QUEUE_BYTES, max_queue_bytes. Flags override variables, variables override the file,
the file overrides the defaults. Durations are written 500ms, 10s, 2m or 1h. A flag that may be
repeated is comma-separated in a variable and a list in the file.

Exit codes: 0 success, 1 failure to start or to run, 2 error in flags, environment or file.";

/// A subcommand.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Action {
    /// Serve clients; the default without a subcommand
    Serve,
    /// Check or print the configuration
    #[command(subcommand)]
    Config(ConfigAction),
    /// Check whether a running server is ready: exit 0 if it is, 1 if not
    ///
    /// Requests /health/ready at --api-listen, which is read from flags, environment and file as by
    /// the server.
    Health,
    /// Print a token (JWT) for development, signed with the secret of --auth-secret-file
    ///
    /// Settings are read from flags, environment and file as by the server, so a server with the
    /// same settings accepts the token. The first --auth-audience and --auth-issuer become its
    /// `aud` and `iss`. Whoever can read the secret can impersonate any user; in production, your
    /// login service issues the tokens.
    Token(TokenArgs),
    /// Watch a running server: connections, rates, and its busiest topics and clients
    ///
    /// Polls the server API at --api-listen with --api-key, which are read from flags, environment
    /// and file as by the server.
    Top(deeperhub_top::TopArgs),
    /// Print the messages of a topic with history, kept ones first with --from
    ///
    /// Prints one message a line, and gaps and lost connections to standard error. Reconnects by
    /// itself and continues after the last message. Uses the server API at --api-listen with
    /// --api-key, which are read from flags, environment and file as by the server.
    Tail(TailArgs),
    /// Load-test a running server: rates, latency, loss
    ///
    /// Run it on another machine than the server if you can; on the same one, both share the
    /// processors.
    Bench(Box<deeperhub_bench::Args>),
    /// Print a machine-readable description of the protocol or the server API
    Schema {
        /// Description to print
        schema: Schema,
    },
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
}

/// Subcommands and flags that do not start a server.
const NON_SERVING_ARGUMENTS: [&str; 13] = [
    "config",
    "health",
    "token",
    "top",
    "tail",
    "bench",
    "schema",
    "completions",
    "help",
    "--help",
    "-h",
    "--version",
    "-V",
];

/// Returns `true` if the command line starts a server or is rejected, as a cheap check before
/// parsing. Returns `false` for some command lines that start a server: those with a value that
/// equals one of [`NON_SERVING_ARGUMENTS`].
pub(crate) fn serves(arguments: impl IntoIterator<Item = OsString>) -> bool {
    !arguments
        .into_iter()
        .skip(1)
        .any(|argument| NON_SERVING_ARGUMENTS.iter().any(|other| argument == *other))
}

/// Builds the command line.
pub(crate) fn command() -> Command {
    let shown_defaults = help::defaults();
    let with_options = |command| help::with_defaults(with_options(command), &shown_defaults);
    // A client command accepts all flags of the server, so that both can be called with the same
    // flags. Its help shows only its own flags and the `shown` ones.
    let with_hidden_options = |command: Command, shown: &[&str]| {
        let own: Vec<_> = command.get_arguments().map(|argument| argument.get_id().clone()).collect();
        with_options(command).mut_args(|flag| {
            let is_shown = own.contains(flag.get_id()) || shown.contains(&flag.get_id().as_str());
            flag.hide(!is_shown)
        })
    };
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
            with_hidden_options(token, &["config", "auth_secret_file", "auth_audience", "auth_issuer"])
        })
        .mut_subcommand("top", |top| {
            as_api_client(with_hidden_options(top, &["config", "api_listen", "api_key"]))
        })
        .mut_subcommand("tail", |tail| {
            as_api_client(with_hidden_options(tail, &["config", "api_listen", "api_key"]))
        })
        .mut_subcommand("health", |health| {
            as_api_client(with_hidden_options(health, &["config", "api_listen"]))
        });
    // Otherwise the error for `--rate-limit -1` would say that `-1` is no flag, instead of naming
    // the valid range.
    allow_negative_numbers(with_options(command))
}

/// Adds the flags of the settings; the command keeps its own description.
fn with_options(command: Command) -> Command {
    // The derived function replaces the command's description with the doc comment of `Options`.
    let about = command.get_about().cloned().unwrap_or_default();
    let long_about = command.get_long_about().cloned().unwrap_or_else(|| about.clone());
    help::with_numbers(Options::augment_args(command)).about(about).long_about(long_about)
}

/// Replaces the help of the server API's options with that for a client of the API.
fn as_api_client(command: Command) -> Command {
    let address = format!("Connect to the server API at this address [default: {}]", defaults::API_ADDRESS);
    command
        .mut_arg("api_listen", |flag| flag.help(address).long_help(None))
        .mut_arg("api_key", |flag| flag.help("Send this key to the server API").long_help(None))
}

fn allow_negative_numbers(command: Command) -> Command {
    command
        .mut_args(
            |flag| if flag.get_action().takes_values() { flag.allow_negative_numbers(true) } else { flag },
        )
        .mut_subcommands(allow_negative_numbers)
}

/// Returns the subcommand, and the flags of each level: first those before the subcommand's name,
/// then those after it.
///
/// # Errors
///
/// If flags of the server are given before the name of a subcommand that does not use them.
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
        && has_flags(matches)
    {
        let name = matches.subcommand_name().unwrap_or_default();
        let message = format!("{name} takes no flags of the server before its name");
        return Err(command().error(ErrorKind::ArgumentConflict, message));
    }
    Ok((action, flags))
}

/// Returns `true` if the command line has flags before the subcommand's name.
fn has_flags(matches: &ArgMatches) -> bool {
    matches.ids().any(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<Action>) {
        let parsed = command().try_get_matches_from(line.split(' ')).and_then(|matches| {
            let (action, _) = action(&matches)?;
            Ok(action)
        });
        assert_eq!(parsed.ok(), expected, "{line}");
    }

    fn token_args(line: &str) -> TokenArgs {
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
    fn serves_recognises_all_other_subcommands() {
        let serving = |line: &str| serves(line.split(' ').map(OsString::from));
        for subcommand in command().get_subcommands().map(Command::get_name) {
            assert_eq!(serving(&format!("deeperhub-ws --port 0 {subcommand}")), subcommand == "serve");
        }
        assert!(serving("deeperhub-ws") && serving("config --port 0"));
        assert!(!serving("deeperhub-ws --help") && !serving("deeperhub-ws -V"));
    }

    #[test]
    fn subcommands_take_the_servers_flags_before_and_after_their_name() {
        let checked = |for_topic| Some(Action::Config(ConfigAction::Check { for_topic }));
        check("deeperhub-ws config check --port 1", checked(None));
        let topic = deeperhub_node::Topic::parse("a.b").ok();
        check("deeperhub-ws --topic a: config check --for a.b --topic b:", checked(topic));
        check("deeperhub-ws config check --for a.>", None);
        check("deeperhub-ws --for a.b", None);
        check("deeperhub-ws --port 1 config show", Some(Action::Config(ConfigAction::Show)));
        check("deeperhub-ws health --api-listen off --rate-limit 5", Some(Action::Health));
        let token = token_args("deeperhub-ws --port 1 token --sub ada --auth-secret-file f --ttl 48h");
        assert!(format!("{token:?}").contains("ada"));
        check("deeperhub-ws top --api-listen 127.0.0.1:9 --interval 10ms", None);
        check("deeperhub-ws tail --topic a: b --json", Some(Action::Tail(TailArgs::of("b", None, true))));
        let from = |from| Some(Action::Tail(TailArgs::of("a.b", Some(from), false)));
        check("deeperhub-ws --topic a: tail a.b --from -10", from("-10"));
        check("deeperhub-ws tail --from k3J9aQx2:41 a.b", from("k3J9aQx2:41"));
        check("deeperhub-ws completions bash", Some(Action::Completions { shell: Shell::Bash }));
    }

    #[test]
    fn unknown_arguments_are_refused() {
        check("deeperhub-ws --colour", None);
        check("deeperhub-ws paint", None);
        check("deeperhub-ws config", None);
        check("deeperhub-ws completions tcsh", None);
        check("deeperhub-ws completions bash --port 1", None);
        check("deeperhub-ws --port 1 completions bash", None);
        check("deeperhub-ws token", None);
        check("deeperhub-ws token --sub ada --ttl 0", None);
        check("deeperhub-ws token --sub ada --subscribe a..b", None);
        check("deeperhub-ws tail", None);
        for topic in ["a..b", "a.>", "$canary"] {
            check(&format!("deeperhub-ws tail {topic}"), None);
        }
        for from in ["10", "-0", "-", "", "-x", "-1.5", "+1", "k3J9aQx2", "k3J9aQx2:-1", "k3J9aQx:1", "?:1"] {
            check(&format!("deeperhub-ws tail a --from {from}"), None);
        }
        check("deeperhub-ws bench", None);
        check("deeperhub-ws bench paint", None);
        check("deeperhub-ws bench echo --port 1", None);
        check("deeperhub-ws --port 1 bench echo", None);
    }
}
