//! Where the wire can be served.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// One connection, on standard input and output.
    StandardStreams,
    /// Any number of connections to this address.
    Tcp(SocketAddr),
    /// Any number of connections of this user to this socket.
    Unix(PathBuf),
}

/// An address that is this wire's and cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidAddress {
    /// `grpc://` without an IP address and a port.
    #[error("invalid gRPC --listen URL `{0}`; expected `grpc://IP:PORT`")]
    Tcp(String),
    /// `unix:` without a path.
    #[error("invalid gRPC --listen URL `{0}`; expected `unix:PATH`")]
    Unix(String),
}

impl Address {
    /// The address in `--listen`; `None` where it is another wire's.
    pub fn parse(url: &str) -> Option<Result<Self, InvalidAddress>> {
        if url == "grpc+stdio://" {
            return Some(Ok(Self::StandardStreams));
        }
        if let Some(path) = url.strip_prefix("unix:") {
            // As gRPC names it: `unix:PATH`, or `unix:///PATH`.
            let path = path.strip_prefix("//").unwrap_or(path);
            return Some(match path.is_empty() {
                true => Err(InvalidAddress::Unix(url.to_owned())),
                false => Ok(Self::Unix(path.into())),
            });
        }
        let address = url.strip_prefix("grpc://")?;
        let invalid = |_| InvalidAddress::Tcp(url.to_owned());
        let address = address.parse().map_err(invalid);
        Some(address.map(Self::Tcp))
    }

    /// Whether other machines can connect.
    pub(crate) fn is_exposed(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_ip_and_port_a_socket_or_the_standard_streams() {
        let parsed =
            |url: &str| Address::parse(url).map(|parsed| parsed.map_err(|e| e.to_string()));
        let tcp = |address: &str| Some(Ok(Address::Tcp(address.parse().expect("an address"))));
        assert_eq!(parsed("stdio"), None);
        assert_eq!(parsed("grpc+stdio://"), Some(Ok(Address::StandardStreams)));
        assert_eq!(parsed("grpc://127.0.0.1:0"), tcp("127.0.0.1:0"));
        assert_eq!(parsed("grpc://[::1]:80"), tcp("[::1]:80"));
        for url in ["unix:/run/host", "unix:///run/host"] {
            assert_eq!(parsed(url), Some(Ok(Address::Unix("/run/host".into()))));
        }
        for url in [
            "grpc://",
            "grpc://localhost:1",
            "grpc://127.0.0.1",
            "grpc://127.0.0.1:1/x",
        ] {
            let error = format!("invalid gRPC --listen URL `{url}`; expected `grpc://IP:PORT`");
            assert_eq!(parsed(url), Some(Err(error)));
        }
        for url in ["unix:", "unix://"] {
            let error = format!("invalid gRPC --listen URL `{url}`; expected `unix:PATH`");
            assert_eq!(parsed(url), Some(Err(error)));
        }
    }

    #[test]
    fn only_what_is_no_loopback_address_is_exposed() {
        let is_exposed = |url: &str| {
            let address = Address::parse(url).expect("this wire's");
            address.expect("an address").is_exposed()
        };
        for url in [
            "grpc+stdio://",
            "unix:/x",
            "grpc://127.0.0.2:1",
            "grpc://[::1]:1",
        ] {
            assert!(!is_exposed(url), "{url}");
        }
        for url in ["grpc://0.0.0.0:1", "grpc://[::]:1", "grpc://10.0.0.1:1"] {
            assert!(is_exposed(url), "{url}");
        }
    }
}
