//! Plays scenes against a client and says which of them it passes. With `--soak`, runs the client
//! for a long time instead.

mod application;
mod arguments;
mod connection;
mod driver;
mod failure;
mod journal;
mod kit;
mod received;
mod request;
mod runner;
mod scenes;
mod soak;
mod tls;
mod topic;

use std::process::ExitCode;

use crate::arguments::Arguments;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut command_line = std::env::args().skip(1).peekable();
    if command_line.next_if_eq("--soak").is_some() {
        return soak::run(command_line).await;
    }
    let arguments = match Arguments::parse(command_line) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let scenes = scenes::matching(&arguments.names);
    if scenes.is_empty() {
        eprintln!("no scene has a name with {:?}: --list prints all names", arguments.names);
        return ExitCode::from(2);
    }
    if arguments.list {
        scenes.iter().for_each(|scene| println!("{}", scene.name));
        return ExitCode::SUCCESS;
    }
    runner::play_all(scenes, &arguments).await
}
