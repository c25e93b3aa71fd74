//! The command line of the kit.

const USAGE: &str = "usage: deeperhub-conformance [--jobs N] [--seed N] [NAME…] -- DRIVER [ARGUMENT…]
       deeperhub-conformance --list [NAME…]
       deeperhub-conformance --soak …

Plays all scenes, or the ones whose names contain one of NAME, against a driver. Another seed gives
other random faults in the scenes of chaos.";

/// Settings of a run.
pub(crate) struct Arguments {
    pub(crate) list: bool,
    /// Number of scenes that are played at a time.
    pub(crate) jobs: usize,
    /// Number from which the random scenes take their seeds.
    pub(crate) seed: u64,
    /// Parts of names of scenes; all scenes if empty.
    pub(crate) names: Vec<String>,
    /// Command line of the driver.
    pub(crate) driver: Vec<String>,
}

impl Arguments {
    /// Parses the command line, or returns a text for the user.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self { list: false, jobs: 4, seed: 0, names: Vec::new(), driver: Vec::new() };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => parsed.list = true,
                "--jobs" => match arguments.next().unwrap_or_default().parse() {
                    Ok(jobs) if jobs > 0 => parsed.jobs = jobs,
                    _ => return Err(format!("--jobs takes a number from 1\n{USAGE}")),
                },
                "--seed" => match arguments.next().unwrap_or_default().parse() {
                    Ok(seed) => parsed.seed = seed,
                    Err(_) => return Err(format!("--seed takes a number\n{USAGE}")),
                },
                "--" => parsed.driver = arguments.by_ref().collect(),
                option if option.starts_with('-') => return Err(USAGE.to_owned()),
                _ => parsed.names.push(argument),
            }
        }
        if parsed.driver.is_empty() && !parsed.list { Err(USAGE.to_owned()) } else { Ok(parsed) }
    }
}
