//! Counters, gauges and histograms for hot loops, with Prometheus text
