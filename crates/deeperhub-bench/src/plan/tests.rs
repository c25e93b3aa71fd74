use proptest::prelude::*;

use super::*;

pub(crate) fn try_plan(flags: &str) -> Result<Plan, BenchError> {
    Plan::new(Args::from_flags(flags.split(' ')).unwrap())
}

pub(crate) fn plan(flags: &str) -> Plan {
    try_plan(flags).unwrap()
}

#[test]
fn flags_have_defaults() {
    let time = |warmup, measured| StopCondition::Time {
        warmup: Duration::from_secs(warmup),
        measured: Duration::from_secs(measured),
    };
    for (flags, load, stop) in [
        ("echo", LoadModel::ClosedLoop(1), time(1, 10)),
        ("fanout --in-flight 8 --duration 5s", LoadModel::ClosedLoop(8), time(1, 5)),
        ("topics --rate 8 --warmup 0", LoadModel::OpenLoop(8), time(0, 10)),
        ("slow", LoadModel::OpenLoop(100), time(1, 10)),
        ("slow --in-flight 2", LoadModel::ClosedLoop(2), time(1, 10)),
        ("fanout --messages 7", LoadModel::ClosedLoop(1), StopCondition::Messages(7)),
        ("idle", LoadModel::ClosedLoop(1), time(0, 10)),
    ] {
        let plan = plan(flags);
        assert_eq!((plan.load, plan.stop), (load, stop), "{flags}");
    }
}

#[test]
fn errors_name_the_flags_that_contradict_each_other() {
    for (flags, named) in [
        ("topics --topics 5 --subscribers 4", ["--topics 5", "--subscribers 4"]),
        ("echo --threads 3 --connections 2", ["--threads 3", "2 connections"]),
        ("fanout --subscribers 1000000 --publishers 1000", ["--subscribers 1000000", "--publishers 1000"]),
        ("echo --insecure", ["--insecure", "wss://"]),
        ("echo --ca a.pem", ["--ca", "wss://"]),
    ] {
        let message = try_plan(flags).unwrap_err().to_string();
        for text in named {
            assert!(message.contains(text), "{text:?} is not in: {message}");
        }
    }
}

#[test]
fn slow_readers_are_the_last_of_the_clients() {
    let roles: Vec<_> =
        plan("slow --subscribers 2 --slow-readers 1").connection_specs().map(|spec| spec.role).collect();
    assert_eq!(roles, [Role::Subscriber, Role::Subscriber, Role::SlowReader, Role::Publisher]);
}

#[test]
fn connections_rotate_over_source_addresses() {
    let plan = plan("echo --source 127.0.0.2,127.0.0.3 --source ::1");
    let sources: Vec<_> = (0..4).map(|number| plan.source(number).unwrap().ip().to_string()).collect();
    assert_eq!(sources, ["127.0.0.2", "127.0.0.3", "::1", "127.0.0.2"]);
    assert_eq!(super::tests::plan("echo").source(0), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_stream_has_one_publisher_and_every_topic_its_streams(publishers in 1..20_usize, topics in 1..20_usize) {
        let plan = plan(&format!("topics --publishers {publishers} --topics {topics}"));
        let mut owners = vec![0; plan.streams()];
        let mut of_topic = vec![0; topics];
        for publisher in 0..publishers as u32 {
            let first = plan.stream_of(publisher, 0);
            let mut turn = 0;
            loop {
                let stream = plan.stream_of(publisher, turn);
                if turn > 0 && stream == first {
                    break;
                }
                owners[stream as usize] += 1;
                of_topic[stream as usize % topics] += 1;
                turn += 1;
            }
        }
        prop_assert!(owners.iter().all(|owners| *owners == 1), "{:?}", owners);
        prop_assert!(of_topic.iter().all(|streams| (1..=plan.streams_of_topic()).contains(streams)));
    }

    #[test]
    fn shares_of_senders_add_up_to_all_messages(senders in 1..50_usize, messages in 1..1000_u64) {
        let plan = plan(&format!("echo --connections {senders} --messages {messages}"));
        let sum: u64 = (0..senders as u32).map(|sender| plan.max_messages(sender)).sum();
        prop_assert_eq!(sum, messages);
    }
}
