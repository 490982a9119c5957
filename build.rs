//! Compiles `proto/furt/v1`: the build script of package `furt-proto`, so it runs in `proto/`.
//!
//! No protoc is needed: protox parses the files. `RegistryService` goes through tonic-prost-build.
//! `SnapshotService` is made with tonic-build's codec-neutral generator instead, because its answers
//! are encoded once and the same bytes are handed to every data plane.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_build::manual::{Builder, Method, Service};

const SNAPSHOT_SERVICE: &str = "SnapshotService";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed={}", root.join("furt").display());

    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(["furt/v1/registry.proto", "furt/v1/snapshot.proto", "furt/store/v1/store.proto"])?;
    fs::write(out.join("furt_descriptor.bin"), compiler.encode_file_descriptor_set())?;

    let mut files = compiler.file_descriptor_set();
    for file in &mut files.file {
        file.service.retain(|service| service.name() != SNAPSHOT_SERVICE);
    }
    tonic_prost_build::configure().compile_fds(files)?;

    let codec = "crate::codec::SnapshotCodec";
    let get =
        Method::builder().name("get").route_name("Get").input_type("crate::v1::GetRequest").output_type("::bytes::Bytes").codec_path(codec);
    let watch = Method::builder()
        .name("watch")
        .route_name("Watch")
        .input_type("crate::v1::WatchRequest")
        .output_type("::bytes::Bytes")
        .codec_path(codec)
        .client_streaming()
        .server_streaming();
    let service = Service::builder().name(SNAPSHOT_SERVICE).package("furt.v1").method(get.build()).method(watch.build()).build();
    Builder::new().compile(&[service]);
    Ok(())
}
