//! The hub itself: sessions, commands, drain, and the handle that embedding programs use
