//! The worker's connection to its host, where standard input cannot be one.

use std::io;

use interprocess::local_socket::tokio::prelude::*;
use interprocess::local_socket::{
    GenericFilePath, GenericNamespaced, ListenerOptions, Name, ToFsName, ToNsName,
};

use interprocess::local_socket::tokio::Stream;

use super::Args;

pub(super) enum Endpoint {
    Listen(Name<'static>),
    Connect(Name<'static>),
}

pub(super) fn open(args: &Args) -> io::Result<Endpoint> {
    match (&args.listen, &args.connect) {
        (Some(path), _) => Ok(Endpoint::Listen(
            path.clone().to_fs_name::<GenericFilePath>()?,
        )),
        (_, Some(name)) => Ok(Endpoint::Connect(
            name.clone().to_ns_name::<GenericNamespaced>()?,
        )),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "needs --listen SOCKET on this platform",
        )),
    }
}

pub(super) async fn into_async(endpoint: Endpoint) -> io::Result<Stream> {
    match endpoint {
        Endpoint::Listen(name) => {
            let listener = ListenerOptions::new().name(name).create_tokio()?;
            listener.accept().await
        }
        Endpoint::Connect(name) => Stream::connect(name).await,
    }
}
