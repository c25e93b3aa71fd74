//! Tests of the program from outside: the real binary on ports of its own, with clients of another implementation.

mod bench;
mod cli;
mod layering;
mod support;
