//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[cfg(feature = "rate-limit")]
#[path = "../examples/gate.rs"]
mod gate;

#[cfg(feature = "auth")]
#[path = "../examples/token.rs"]
mod token;

use example::{check, run_main};

#[cfg(feature = "rate-limit")]
#[test]
#[ignore = "the process of the example; another test starts it"]
fn gate_process() {
    run_main(gate::main);
}

#[cfg(feature = "rate-limit")]
#[test]
fn gate_checks_origins_and_rates() {
    check(
        "gate_process",
        &[
            "page https://app.example.com: Ok",
            "page https://evil.example: Err",
            "attempt 3: connection Ok(()), message Ok(())",
            "attempt 4: connection Err",
        ],
    );
}

#[cfg(feature = "auth")]
#[test]
#[ignore = "the process of the example; another test starts it"]
fn token_process() {
    run_main(token::main);
}

#[cfg(feature = "auth")]
#[test]
fn token_signs_and_verifies() {
    check("token_process", &["user ada", "may publish to room.a: true"]);
}
