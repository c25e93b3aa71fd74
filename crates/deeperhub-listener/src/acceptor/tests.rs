use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use deeperhub_metrics::Cells;

use super::listen::listen;
use super::*;

fn addresses(sockets: &[TcpListener]) -> Vec<SocketAddr> {
    sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
}

#[test]
fn both_loopback_addresses_get_the_same_port() {
    for _ in 0..10 {
        let sockets = listen_on(ListenOn::Loopback { port: 0 }, 16).unwrap();
        let addresses = addresses(&sockets);
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
        assert!(addresses[0].port() > 0);
        assert!(addresses.iter().all(|address| address.port() == addresses[0].port()), "{addresses:?}");
        let again = listen_on(ListenOn::Loopback { port: addresses[0].port() }, 16);
        assert!(again.is_err_and(|(_, error)| error.kind() == io::ErrorKind::AddrInUse));
    }
}

#[test]
fn a_port_taken_on_one_loopback_address_is_an_error() {
    let Ok(other) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    let address = other.local_addr().unwrap();
    let result = listen_on(ListenOn::Loopback { port: address.port() }, 16);
    // If another program holds the port on 127.0.0.1, the error names that address.
    let (failed_address, error) = result.unwrap_err();
    assert_eq!((failed_address.port(), error.kind()), (address.port(), io::ErrorKind::AddrInUse));
}

#[test]
fn the_next_ready_socket_is_found_from_any_index() {
    assert_eq!(next_ready(&[true, true], 0), Some(0));
    assert_eq!(next_ready(&[true, true], 1), Some(1));
    assert_eq!(next_ready(&[true, true], 2), Some(0));
    assert_eq!(next_ready(&[true, false], 1), Some(0));
    assert_eq!(next_ready(&[false, false], 1), None);
}

/// Panics if the test injected a panic.
pub(super) fn panic_if_injected(injected_panics: &AtomicUsize) {
    let result =
        injected_panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    assert!(result.is_err(), "this panic was injected by a test");
}

#[test]
fn an_acceptor_continues_with_its_listening_socket_after_a_panic() {
    let socket = listen(([127, 0, 0, 1], 0).into(), 128).unwrap();
    let address = socket.local_addr().unwrap();
    let control = Arc::new(Control::new(1));
    let admission = Arc::new(Admission::new(10, None, None, 1));
    let metrics = Metrics::new(&Cells::new(1));
    let config = Config { workers: 1, ..Config::default() };
    let acceptor =
        Acceptor::new(vec![socket], Arc::clone(&control), admission, &config, metrics.clone()).unwrap();
    let (injected_panics, stopper) = (Arc::clone(&acceptor.injected_panics), acceptor.stopper());
    let thread = std::thread::spawn(move || acceptor.run());
    let check_accepts = || {
        let client = std::net::TcpStream::connect(address).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(arrival) = control.mailbox(0).pop() {
                assert_eq!(arrival.peer, client.local_addr().unwrap());
                return;
            }
            assert!(Instant::now() < deadline, "the connection is not accepted");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    check_accepts();
    injected_panics.store(2, Ordering::Relaxed);
    check_accepts();
    check_accepts();
    assert_eq!(metrics.acceptor_restarts.value(), 2);
    control.stop();
    stopper.wake().unwrap();
    thread.join().unwrap();
}
