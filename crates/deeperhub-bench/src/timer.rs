//! Poll timeouts with a resolution below a millisecond, which epoll does not have.

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

    /// A timer file descriptor that is registered with the poll.
    #[derive(Debug)]
    pub(crate) struct Timer {
        file: OwnedFd,
    }

    impl Timer {
        /// Creates a timer whose events have this token.
        pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let file =
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            registry.register(&mut SourceFd(&file.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self { file })
        }

        /// Arms the timer and returns the timeout for the poll.
        pub(crate) fn arm(&mut self, time: Duration) -> io::Result<Duration> {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A time of 0 would disarm the timer.
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

    /// Does nothing, because kqueue takes timeouts in nanoseconds.
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
