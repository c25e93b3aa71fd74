//! The OpenAPI document of the API.

#[cfg(test)]
mod generated;

/// Returns the OpenAPI 3.1 document of this API, as indented JSON with a final line feed.
#[must_use]
pub const fn openapi() -> &'static str {
    // A test generates it from the code and compares.
    include_str!("../openapi.json")
}
