//! Runs of a simulation with real clients over many seeds.

use std::fmt::Debug;

use super::super::{SEEDS, catch, report, seeds};
use super::{Progress, RealClients};

/// A simulation with real clients.
pub(in super::super) trait Run: RealClients + Sized {
    type Settings: Copy + Debug;
    type Operation: Copy + Debug;

    /// Chooses the settings and the operations of a seed.
    fn choose(seed: u64) -> (Self::Settings, Vec<Self::Operation>);

    fn start(settings: Self::Settings) -> Result<Self, String>;

    fn apply(&mut self, operation: Self::Operation) -> Result<(), String>;

    /// Ends all faults, and lets all arrive.
    fn finish(&mut self) -> Result<(), String>;

    /// Runs operations.
    fn run(settings: Self::Settings, operations: &[Self::Operation]) -> Result<Progress, String> {
        let mut progress = Progress::default();
        catch(|| {
            let mut simulation = Self::start(settings)?;
            for operation in operations {
                simulation.apply(*operation).map_err(|text| format!("{text}, after {operation:?}"))?;
            }
            simulation.finish().map_err(|text| format!("{text}, at the end"))?;
            progress = simulation.progress();
            Ok(())
        })?;
        Ok(progress)
    }

    fn run_seed(seed: u64) -> Result<Progress, String> {
        let (settings, operations) = Self::choose(seed);
        Self::run(settings, &operations)
    }
}

/// Runs all seeds. Fails with the first one that fails, and the shortest list of its operations.
pub(in super::super) fn check_seeds<R: Run>() {
    let seeds = seeds();
    let (count, mut total) = (seeds.end - seeds.start, Progress::default());
    for seed in seeds {
        match R::run_seed(seed) {
            Ok(progress) => total.add(&progress),
            Err(_) => {
                let (settings, operations) = R::choose(seed);
                report((seed, settings), operations, |operations| R::run(settings, operations).map(drop));
            }
        }
    }
    println!("{count} seeds: {total:?}");
    // The checks mean nothing if the runs have no faults.
    assert!(count < SEEDS || total.has_everything(), "{total:?}");
}

/// Checks that seeds find each of some bugs.
pub(in super::super) fn find_bugs<R: Run, B: Copy + Debug>(bugs: &[(B, u64)], plant: impl Fn(Option<B>)) {
    super::super::find_bugs(bugs, plant, |seed| R::run_seed(seed).is_err());
}
