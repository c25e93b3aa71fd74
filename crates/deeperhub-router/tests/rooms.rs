//! Runs the shortest example, which checks its own deliveries.

#[path = "../examples/rooms.rs"]
mod rooms;

#[test]
fn the_rooms_example_runs() {
    rooms::main().expect("the example succeeds");
}

#[test]
fn the_rooms_example_stays_short() {
    let lines = include_str!("../examples/rooms.rs").lines().map(str::trim);
    let code = lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!(code <= 20, "{code} lines of code");
}
