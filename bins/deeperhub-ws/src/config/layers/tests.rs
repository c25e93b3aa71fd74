//! Tests of layers: flags, environment and file.

use std::io::Write as _;

use super::*;

/// Reads the layers of a command line, an environment and the text of a file.
fn gather(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Result<Layers, String> {
    let mut flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let path = std::env::temp_dir().join(format!("deeperhub-{}-{name}.toml", std::process::id()));
    if let Some(text) = file {
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        flags.push(format!("--config={}", path.display()));
    }
    let matches = Options::parser().try_get_matches_from(flags).unwrap();
    let environment = environment.iter().map(|(name, text)| (OsString::from(name), OsString::from(text)));
    let gathered = Layers::read([&matches], environment);
    let _ = std::fs::remove_file(&path);
    gathered.map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n").replace(&path.display().to_string(), "hub.toml")
    })
}

#[test]
fn flag_wins_over_variable_over_file_over_default() {
    let file = "port = 1\nhost = '::1'\nmax_connections = 5";
    let variables = [("DEEPERHUB_PORT", "2"), ("DEEPERHUB_MAX_CONNECTIONS", "6")];
    let layers = gather(&["--port=3"], &variables, Some(file)).unwrap();
    assert_eq!(layers.options.listening.port, Some(3));
    assert_eq!(layers.options.limits.max_connections, Some(6));
    assert_eq!(layers.options.listening.host, "::1".parse().ok());
    assert_eq!(layers.options.limits.rate_limit, None);
    assert_eq!(layers.origins["port"], SettingOrigin::Flag);
    assert_eq!(layers.origins["max_connections"], SettingOrigin::Variable);
    assert_eq!(layers.origins["host"].label("host").rsplit_once(':').map(|(_, line)| line), Some("2"));
    assert!(!layers.origins.contains_key("rate_limit"));
}

#[test]
fn the_subcommands_flag_wins_over_the_one_before_it() {
    let before = Options::parser().get_matches_from(["--port=1", "--workers=3"]);
    let after = Options::parser().get_matches_from(["--port=2"]);
    let layers = Layers::read([&before, &after], []).unwrap();
    assert_eq!((layers.options.listening.port, layers.options.general.workers), (Some(2), Some(3)));
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let errors = gather(&[], &[("DEEPERHUB_CONFIG", "/nowhere/hub.toml")], None).unwrap_err();
    assert!(
        errors.starts_with("cannot read config file /nowhere/hub.toml (from DEEPERHUB_CONFIG): "),
        "{errors}"
    );
}

#[test]
fn lists_are_comma_separated_in_variables_and_arrays_in_files() {
    let variables = [("DEEPERHUB_ALLOWED_ORIGIN", "https://a.example,https://b.example")];
    let from_variable = gather(&[], &variables, None).unwrap().options.web_pages.allowed_origin;
    let file = "allowed_origin = ['https://a.example', \"https://b.example\"]";
    let from_file = gather(&[], &[], Some(file)).unwrap().options.web_pages.allowed_origin;
    let flags = ["--allowed-origin=https://a.example", "--allowed-origin", "https://b.example"];
    let from_flags = gather(&flags, &[], None).unwrap().options.web_pages.allowed_origin;
    assert_eq!(from_variable.as_ref().map(Vec::len), Some(2));
    assert_eq!(from_variable, from_file);
    assert_eq!(from_variable, from_flags);
}

#[test]
fn every_invalid_value_is_reported_with_its_key_and_what_is_expected() {
    let file = "port = 'many'\nping_interval = 25\nworkers = [1, 2]";
    let variables = [("DEEPERHUB_LOG_LEVEL", "loud"), ("DEEPERHUB_API_LISTEN", "")];
    let errors = gather(&["--port=1"], &variables, Some(file)).unwrap_err();
    let expected = "\
        invalid value '25' for ping_interval in hub.toml:2: expected a duration such as 500ms, 10s, 2m or 1h, at most 24h\n\
        invalid value 'many' for port in hub.toml:1: expected a whole number from 0 to 65535\n\
        invalid value '1,2' for workers in hub.toml:3: expected one value, not a list\n\
        invalid value '' for DEEPERHUB_API_LISTEN: expected an address and a port, such as 127.0.0.1:8081 or [::1]:8081, or off\n\
        invalid value 'loud' for DEEPERHUB_LOG_LEVEL: expected one of error, warn, info, debug, trace";
    assert_eq!(errors, expected);
}

/// Returns the rules with the names of their origins.
fn rules(layers: &Layers) -> Vec<String> {
    let rules = layers.options.history.topic.iter().flatten();
    assert_eq!(rules.clone().count(), layers.rule_origins.len());
    let origins = layers.rule_origins.iter().map(|origin| origin.label("topic"));
    let named = rules.zip(origins).map(|(rule, origin)| {
        let origin = origin.rsplit('/').next().unwrap_or_default().to_owned();
        format!("{rule} ({})", origin.split_once(".toml:").map_or(origin.as_str(), |(_, line)| line))
    });
    named.collect()
}

#[test]
fn rules_of_all_layers_apply_in_the_order_of_precedence() {
    let flags = ["--topic=a: history=1", "--topic", "b,c: history=2 ttl=1h"];
    let variables = [("DEEPERHUB_TOPIC", "d: history=3,\n e.>:  history=4 ")];
    let file = "topic = ['f: history=5']\n[[topics]]\nmatch = 'g'\nhistory = 6";
    let layers = gather(&flags, &variables, Some(file)).unwrap();
    assert_eq!(
        rules(&layers),
        [
            "a: history=1 (--topic)",
            "b,c: history=2 ttl=1h (--topic)",
            "d: history=3 (DEEPERHUB_TOPIC)",
            "e.>: history=4 (DEEPERHUB_TOPIC)",
            "f: history=5 (1)",
            "g: history=6 (2)",
        ]
    );
    assert_eq!(rules(&gather(&[], &[], Some("topic = []")).unwrap()), [""; 0]);
    let before = Options::parser().get_matches_from(["--topic=a:"]);
    let after = Options::parser().get_matches_from(["--topic=b:"]);
    let layers = Layers::read([&before, &after], []).unwrap();
    assert_eq!(rules(&layers), ["a: history=0 (--topic)", "b: history=0 (--topic)"]);
}

#[test]
fn every_invalid_rule_is_reported_with_its_origin() {
    let variables = [("DEEPERHUB_TOPIC", "a: history=many,,b history=1")];
    let file = "topic = ['c: ttl=8d', 5]\n[[topics]]\nmatch = 'g'\nhistory = -6";
    let errors = gather(&["--topic=a:"], &variables, Some(file)).unwrap_err();
    let expected = "\
        hub.toml:4: [[topics]] 1 (g): `history` is `-6`; expected a whole number from 0 to 1000000\n\
        invalid value 'c: ttl=8d' for topic in hub.toml:1: `ttl` is `8d`; expected a duration from 1s to 168h, such as 10m\n\
        invalid value '5' for topic in hub.toml:1: `5` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`\n\
        invalid value 'a: history=many' for DEEPERHUB_TOPIC: `history` is `many`; expected a whole number from 0 to 1000000\n\
        invalid value '' for DEEPERHUB_TOPIC: `` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`\n\
        invalid value 'b history=1' for DEEPERHUB_TOPIC: `b` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`";
    assert_eq!(errors, expected);
}

#[test]
fn secrets_are_not_shown_when_they_have_the_wrong_form() {
    let file = "api_key = ['hunter2', 'x']\ncluster = ['nats://me:hunter2@h', 'x']";
    let errors = gather(&[], &[], Some(file)).unwrap_err();
    assert!(errors.contains("api_key") && errors.contains("cluster"), "{errors}");
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn unknown_variables_are_warned_about_with_a_suggestion() {
    let variables = [
        ("DEEPERHUB_MAX_CONECTIONS", "5"),
        ("DEEPERHUB_WS_SERVICE_HOST", "10.0.0.1"),
        ("DEEPERHUB_WS_PORT", "tcp://10.0.0.1:8080"),
        ("DEEPERHUB_WS_PORT_8080_TCP_PROTO", "tcp"),
        ("DEEPERHUB_port", "5"),
        ("DEEPERHUB_COLOUR", "red"),
        ("PORT", "5"),
    ];
    let layers = gather(&[], &variables, None).unwrap();
    assert_eq!(format!("{:?}", layers.options), format!("{:?}", Options::default()));
    assert_eq!(
        layers.warnings,
        [
            "unknown variable DEEPERHUB_COLOUR: the program does not read it",
            "unknown variable DEEPERHUB_MAX_CONECTIONS: did you mean DEEPERHUB_MAX_CONNECTIONS?",
            "unknown variable DEEPERHUB_port: did you mean DEEPERHUB_PORT?",
        ]
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_unicode_is_refused() {
    use std::os::unix::ffi::OsStringExt;

    let variable = (OsString::from("DEEPERHUB_PORT"), OsString::from_vec(vec![b'8', 0xFF]));
    let errors = Layers::read([], [variable]).unwrap_err();
    assert!(errors[0].to_string().contains("DEEPERHUB_PORT"), "{errors:?}");
}
