//! Makes components of the text in `tests/data/compat/<version>/` against `wit/frozen/<version>/`, where there are none
//! yet. Those that are there stay as they were built: they stand for the components of users.
//!
//! ```text
//! cargo run -p laneway-host --example freeze
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for version in fs::read_dir(root.join("wit/frozen"))? {
        let version = version?;
        for kind in ["handler", "publisher"] {
            let path = root.join("tests/data/compat").join(version.file_name()).join(format!("{kind}.wasm"));
            if path.exists() {
                continue;
            }
            let mut core = wat::parse_file(path.with_extension("wat"))?;
            let mut resolve = Resolve::default();
            let (package, _) = resolve.push_dir(version.path())?;
            let world = resolve.select_world(&[package], Some(&format!("{kind}-plugin")))?;
            embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8, true)?;
            fs::write(&path, ComponentEncoder::default().validate(true).module(&core)?.encode()?)?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
