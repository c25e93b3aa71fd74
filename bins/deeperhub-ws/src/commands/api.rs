//! The server API that `health`, `tail` and `top` send requests to.

use deeperhub_args::{Address, Switchable};

use crate::config::effective::defaults;

/// Returns the address at which a server with the setting `api_listen` serves its API.
///
/// # Errors
///
/// If the API is off, or if the port is 0, because the server then chooses a free port.
pub(crate) fn api_address(api_listen: Option<Switchable<Address>>) -> Result<Address, &'static str> {
    match api_listen.unwrap_or(Switchable::On(defaults::API_ADDRESS)) {
        Switchable::Off => Err("the server API is off (api_listen); give its address with --api-listen"),
        Switchable::On(Address { port: 0, .. }) => {
            Err("the port of the server API is 0 (api_listen); give the port that the server printed")
        }
        Switchable::On(address) => Ok(address),
    }
}
