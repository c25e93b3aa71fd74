//! The declaration of a program's metrics.

/// Declares a struct of instruments. Each field is a metric: its documentation comment is the
/// metric's HELP, and its unit follows from its name ([`Unit::of_name`](crate::Unit::of_name)).
///
/// ```
/// use deeperhub_metrics::{Bounds, Cells, Counter, CounterVec, Format, Histogram, Registry};
/// use deeperhub_metrics::{labels, metrics};
///
/// labels! {
///     /// Type of a message.
///     pub enum MessageType("type") { Text = "text", Binary = "binary" }
/// }
///
/// metrics! {
///     /// Metrics of a hub.
///     pub struct Metrics(max_bytes: u64) {
///         /// Received messages.
///         pub received: CounterVec<MessageType> = "hub_messages_received_total", per worker;
///         /// Sizes of received messages.
///         pub sizes: Histogram = "hub_message_size_bytes", per worker,
///             bounds: Bounds::bytes(max_bytes);
///         /// Restarts of workers.
///         pub restarts: Counter = "hub_worker_restarts_total";
///     }
///
///     /// A worker's cells.
///     pub struct WorkerMetrics;
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let metrics = Metrics::new(&Cells::new(2), 65_536);
/// let mut registry = Registry::new();
/// metrics.register(&mut registry)?;
///
/// // On the thread of worker 1.
/// let mut cells = metrics.worker(1)?;
/// cells.received.inc(MessageType::Text);
/// cells.sizes.observe(120);
///
/// // On any thread.
/// metrics.restarts.inc();
///
/// let text = registry.encode_as(Format::Prometheus);
/// assert!(text.contains("# HELP hub_messages_received_total Received messages.\n"));
/// assert!(text.contains("hub_messages_received_total{type=\"text\"} 1\n"));
/// # Ok(())
/// # }
/// ```
///
/// The struct has these methods, with its own visibility:
///
/// - `new(cells: &Cells, …)` creates the instruments. The arguments in parentheses after the name
///   are for the bounds of histograms. Without arguments, the struct has a `Default`, too, whose
///   metrics no worker has cells of.
/// - `metrics()` returns an iterator of all fields as [`Metric`](crate::Metric), in their order.
/// - `register(registry: &mut Registry)` adds them to a [`Registry`](crate::Registry).
/// - `worker(worker: usize)` returns the cells of a worker, for the fields with `per worker`, if a
///   second struct is declared for them. The other fields take up no space in the workers' memory.
///
/// Notes for programmers are ordinary comments. A field can have a `#[cfg]` after its HELP, but not
/// with `per worker`.
#[macro_export]
macro_rules! metrics {
    // Expansions of `per worker` in a field.
    (@storage $cells:ident worker) => { $cells };
    (@storage $cells:ident) => { $cells.shared() };
    (@cell worker $Instrument:ty) => { <$Instrument as $crate::Instrument>::Cell };
    (@take worker $instrument:expr, $index:ident) => { $crate::Instrument::cell(&$instrument, $index)? };

    (@default $Metrics:ident) => {
        impl ::std::default::Default for $Metrics {
            fn default() -> Self {
                Self::new(&$crate::Cells::default())
            }
        }
    };
    (@default $Metrics:ident $($argument:ident)+) => {};

    (@worker $vis:vis struct $Metrics:ident {
        $(
            $(#[doc = $help:literal])+
            $(#[cfg($($cfg:tt)*)])?
            $field_vis:vis $field:ident: $Instrument:ty =
                $name:literal $(, per $worker:ident)? $(, bounds: $bounds:expr)?;
        )+
    } $(#[$attribute:meta])* $worker_vis:vis struct $WorkerMetrics:ident) => {
        $(#[$attribute])*
        #[derive(Debug)]
        $worker_vis struct $WorkerMetrics {
            $( $(
                #[doc = concat!("Cell of [`", stringify!($Metrics), "::", stringify!($field), "`].")]
                $field_vis $field: $crate::metrics!(@cell $worker $Instrument),
            )? )+
        }

        impl $Metrics {
            /// Returns the cells of a worker, which is counted from 0.
            ///
            /// # Errors
            ///
            /// Returns a `CellError` if there is no such worker, or if its cells are in use.
            $vis fn worker(&self, worker: usize) -> ::std::result::Result<$WorkerMetrics, $crate::CellError> {
                ::std::result::Result::Ok($WorkerMetrics {
                    $( $( $field: $crate::metrics!(@take $worker self.$field, worker), )? )+
                })
            }
        }
    };

    (
        $(#[$attribute:meta])*
        $vis:vis struct $Metrics:ident $(($($argument:ident: $Argument:ty),+ $(,)?))? {
            $(
                $(#[doc = $help:literal])+
                $(#[cfg($($cfg:tt)*)])?
                $field_vis:vis $field:ident: $Instrument:ty =
                    $name:literal $(, per $worker:ident)? $(, bounds: $bounds:expr)?;
            )+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone)]
        $vis struct $Metrics {
            $(
                $(#[doc = $help])+
                $(#[cfg($($cfg)*)])?
                $field_vis $field: $Instrument,
            )+
        }

        impl $Metrics {
            /// Creates the instruments, with cells for as many workers as `cells` has.
            $vis fn new(cells: &$crate::Cells $($(, $argument: $Argument)+)?) -> Self {
                Self {
                    $(
                        $(#[cfg($($cfg)*)])?
                        $field: <$Instrument>::new(
                            $crate::metrics!(@storage cells $($worker)?) $(, $bounds)?
                        ),
                    )+
                }
            }

            /// Returns the instruments as metrics, in the order of their declaration.
            $vis fn metrics(&self) -> impl ::std::iter::Iterator<Item = $crate::Metric> {
                [
                    $(
                        $(#[cfg($($cfg)*)])?
                        $crate::Metric::of(
                            $name,
                            concat!($($help),+),
                            $crate::Unit::of_name($name),
                            &self.$field,
                        ),
                    )+
                ]
                .into_iter()
            }

            /// Adds the metrics to a registry.
            ///
            /// # Errors
            ///
            /// Returns a `RegisterError` if a name is already registered.
            $vis fn register(
                &self,
                registry: &mut $crate::Registry,
            ) -> ::std::result::Result<(), $crate::RegisterError> {
                self.metrics().try_for_each(|metric| registry.add(metric))
            }
        }

        $crate::metrics!(@default $Metrics $($($argument)+)?);
    };

    (
        $(#[$attribute:meta])*
        $vis:vis struct $Metrics:ident $(($($arguments:tt)+))? { $($fields:tt)+ }

        $(#[$worker_attribute:meta])*
        $worker_vis:vis struct $WorkerMetrics:ident;
    ) => {
        $crate::metrics! {
            $(#[$attribute])*
            $vis struct $Metrics $(($($arguments)+))? { $($fields)+ }
        }

        $crate::metrics! {
            @worker $vis struct $Metrics { $($fields)+ }
            $(#[$worker_attribute])* $worker_vis struct $WorkerMetrics
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::{
        Bounds, CellError, Cells, Counter, CounterVec, Gauge, Histogram, Instrument, Registry, Unit,
    };

    crate::labels! {
        enum Answer("answer") { No = "no", Yes = "yes" }
    }

    metrics! {
        /// Metrics with all that a declaration can have.
        struct Metrics(max: u64) {
            /// Open doors,
            /// of all rooms.
            // A note for programmers.
            open: Gauge = "a_open", per worker;
            /// Answers.
            #[cfg(test)]
            answers: CounterVec<Answer> = "a_answers_total";
            /// Only on another system
            #[cfg(not(test))]
            absent: Counter = "a_absent_total";
            /// Sizes of doors
            sizes: Histogram = "a_size_bytes", per worker, bounds: Bounds::exact([max]);
            /// Seconds spent.
            spent: Counter = "a_spent_seconds_total";
        }

        /// A worker's cells.
        struct WorkerMetrics;
    }

    #[test]
    fn a_declaration_has_name_help_unit_and_order() {
        let metrics: Vec<_> = Metrics::new(&Cells::new(1), 7).metrics().collect();
        let described = metrics.iter().map(|metric| {
            let snapshot = metric.snapshot();
            (snapshot.name, snapshot.help, snapshot.unit)
        });
        let expected = [
            ("a_open", "Open doors, of all rooms", Unit::None),
            ("a_answers_total", "Answers", Unit::None),
            ("a_size_bytes", "Sizes of doors", Unit::Bytes),
            ("a_spent_seconds_total", "Seconds spent", Unit::Seconds),
        ];
        assert_eq!(described.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn workers_have_cells_only_of_their_metrics() {
        let metrics = Metrics::new(&Cells::new(1), 7);
        let WorkerMetrics { mut open, mut sizes } = metrics.worker(0).unwrap();
        open.set(3);
        sizes.observe(8);
        metrics.answers.inc(Answer::Yes);
        metrics.spent.add(2);
        assert_eq!((metrics.open.value(), metrics.sizes.snapshot().buckets()), (3, &[0, 1][..]));
        assert_eq!((metrics.answers.value(Answer::Yes), metrics.answers.value(Answer::No)), (1, 0));
        assert_eq!(metrics.answers.cell(0).unwrap_err(), CellError::NoSuchWorker { worker: 0, workers: 0 });
        assert_eq!(metrics.worker(0).map(|_| ()), Err(CellError::Taken { worker: 0 }));
    }

    #[test]
    fn a_name_is_registered_once() {
        let (metrics, mut registry) = (Metrics::new(&Cells::default(), 7), Registry::new());
        metrics.register(&mut registry).unwrap();
        assert!(metrics.register(&mut registry).is_err());
    }
}
