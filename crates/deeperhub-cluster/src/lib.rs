//! Brokers that carry publishes between hub nodes
