//! Plays scenes, a few at a time, and prints a line for each.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use crate::arguments::Arguments;
use crate::failure::{Failure, Result};
use crate::journal::Journal;
use crate::kit::Kit;
use crate::scenes::Scene;
use crate::tls::Authority;

/// Longest wait of a scene for one step. The number of steps differs, and a busy machine takes
/// longer for many.
const STEP_LIMIT: Duration = Duration::from_secs(15);
/// Longest time of a scene, because a faulty client may go on for ever.
const SCENE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time until a driver is ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Kind of scene that needs certificates.
const TLS: &str = "tls";

/// End of a scene.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

/// Plays all scenes and returns whether the client passed.
pub(crate) async fn play_all(scenes: Vec<Scene>, arguments: &Arguments) -> ExitCode {
    // Only some scenes need it, and it takes a moment.
    let authority = match scenes.iter().any(|scene| scene.needs == Some(TLS)).then(Authority::create) {
        Some(Ok(authority)) => Some(Arc::new(authority)),
        Some(Err(failure)) => {
            eprintln!("{failure}");
            return ExitCode::FAILURE;
        }
        None => None,
    };
    let mut outcomes = futures_util::stream::iter(scenes)
        .map(|scene| {
            let authority = authority.clone();
            async move {
                let name = scene.name;
                (name, play(scene, authority, arguments).await)
            }
        })
        .buffer_unordered(arguments.jobs);
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    while let Some((name, outcome)) = outcomes.next().await {
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("ok {name}");
            }
            Outcome::Failed(text) => {
                failed += 1;
                println!("FAILED {name}: {text}");
            }
            Outcome::Skipped(kind) => {
                skipped += 1;
                println!("skipped {name}: the driver skips {kind:?}");
            }
        }
    }
    let skips = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("{passed} passed, {failed} failed{skips}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn play(scene: Scene, authority: Option<Arc<Authority>>, arguments: &Arguments) -> Outcome {
    let journal = Journal::new();
    let failed = |text: String| Outcome::Failed(format!("{text}{}", journal.last_lines()));
    let mut kit = match tokio::time::timeout(
        START_LIMIT,
        Kit::start(&arguments.driver, arguments.seed, authority, journal.clone()),
    )
    .await
    {
        Ok(Ok(kit)) => kit,
        Ok(Err(failure)) => return failed(failure.to_string()),
        Err(_) => return failed(format!("the driver was not ready after {} s", START_LIMIT.as_secs())),
    };
    if let Some(kind) = scene.needs.filter(|kind| kit.skips.iter().any(|skip| skip == kind)) {
        kit.stop().await;
        return Outcome::Skipped(kind);
    }
    let result = play_bounded(&scene, &mut kit, &journal).await;
    // A process that was stopped by a scene must be able to end.
    if result.is_err() {
        let _ = kit.driver().signal("CONT").await;
    }
    kit.stop().await;
    match result {
        Ok(()) => Outcome::Passed,
        Err(failure) => failed(failure.to_string()),
    }
}

async fn play_bounded(scene: &Scene, kit: &mut Kit, journal: &Journal) -> Result {
    let played = tokio::select! {
        result = (scene.play)(kit) => Ok(result),
        () = journal.wait_for_stall(STEP_LIMIT) => Err(STEP_LIMIT),
        () = tokio::time::sleep(SCENE_LIMIT) => Err(SCENE_LIMIT),
    };
    match played {
        Ok(result) => result?,
        Err(limit) => {
            let limit = limit.as_secs();
            return Err(Failure::new(format!("gave up after {limit} s, waiting for {}", journal.awaited())));
        }
    }
    kit.app().finish()
}
