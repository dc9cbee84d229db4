//! What requests hold that are not sent yet. A guest may have as many of them as it may have handles, and they take the
//! host's memory, not its own: so each is small.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{HostOutgoingRequest as Requests, Method, OutgoingRequest};

use crate::session::Session;

/// Most bytes of a body that are taken at once. Two such parts wait for whoever sends them.
pub(super) const BODY_PART_BYTES_MAX: usize = 16 << 10;
/// Size of a list of headers, in bytes.
pub(crate) const FIELDS_BYTES_MAX: usize = 16 << 10;
const METHOD_BYTES_MAX: usize = 64;
/// A host's name has at most 253.
const AUTHORITY_BYTES_MAX: usize = 300;
const PATH_BYTES_MAX: usize = 16 << 10;

/// The interface as wasmtime names it: its version is that of wasmtime's own copy.
const TYPES: &str = "wasi:http/types@0.2.12";

type Answer = wasmtime::Result<(Result<(), ()>,)>;

/// Puts limits before the functions that keep a text of any length.
pub(crate) fn link(linker: &mut Linker<Session>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, Session>,
         (request, method): (Resource<OutgoingRequest>, Method)|
         -> Answer {
            if matches!(&method, Method::Other(name) if name.len() > METHOD_BYTES_MAX) {
                return Ok((Err(()),));
            }
            Ok((Requests::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, Session>,
         (request, path): (Resource<OutgoingRequest>, Option<String>)|
         -> Answer {
            if path.as_ref().is_some_and(|path| path.len() > PATH_BYTES_MAX) {
                return Ok((Err(()),));
            }
            Ok((Requests::set_path_with_query(&mut store.data_mut().http(), request, path)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, Session>,
         (request, authority): (Resource<OutgoingRequest>, Option<String>)|
         -> Answer {
            if authority.as_ref().is_some_and(|authority| authority.len() > AUTHORITY_BYTES_MAX) {
                return Ok((Err(()),));
            }
            Ok((Requests::set_authority(&mut store.data_mut().http(), request, authority)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}
