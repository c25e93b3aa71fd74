//! Waiting for a time that is nearer than a millisecond, which is the unit of epoll's own.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};

#[cfg(not(target_os = "linux"))]
pub(crate) use poll_only::Timer;
#[cfg(target_os = "linux")]
pub(crate) use timerfd::Timer;

#[cfg(target_os = "linux")]
mod timerfd {
    use std::os::fd::{AsRawFd, OwnedFd};

    use mio::Interest;
    use mio::unix::SourceFd;
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    use super::*;

    /// A timer that makes an event.
    #[derive(Debug)]
    pub(crate) struct Timer {
        file: OwnedFd,
    }

    impl Timer {
        /// A timer whose event has this token.
        pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let file =
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            registry.register(&mut SourceFd(&file.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self { file })
        }

        /// Sets the timer and returns what the poll may wait at most.
        pub(crate) fn arm(&mut self, time: Duration) -> io::Result<Duration> {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A time of 0 would switch it off.
            let nanoseconds = i64::from(time.subsec_nanos().max(1));
            let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            let value = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let new = Itimerspec { it_interval: zero, it_value: value };
            timerfd_settime(&self.file, TimerfdTimerFlags::empty(), &new)?;
            Ok(time + Duration::from_millis(1))
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod poll_only {
    use super::*;

    /// Leaves the waiting to the poll, which takes nanoseconds elsewhere.
    #[derive(Debug)]
    pub(crate) struct Timer;

    impl Timer {
        pub(crate) fn new(_registry: &Registry, _token: Token) -> io::Result<Self> {
            Ok(Self)
        }

        pub(crate) fn arm(&mut self, time: Duration) -> io::Result<Duration> {
            Ok(time)
        }
    }
}
