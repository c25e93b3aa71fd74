//! Runs the example `observe`, which returns an error if it receives no event.

#[path = "../examples/observe.rs"]
mod observe;

#[test]
fn the_observe_example_runs() {
    observe::main().expect("the example succeeds");
}

#[test]
fn the_observe_example_stays_short() {
    let lines = include_str!("../examples/observe.rs").lines().map(str::trim);
    let code = lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!(code <= 20, "{code} lines of code");
}
