//! The codec of `SnapshotService`: answers are bytes that were encoded once, for every data plane.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::v1::{GetRequest, WatchRequest};

/// What goes over the wire of `SnapshotService`: a request message, or bytes already encoded.
pub trait Wire: Sized + Send + 'static {
    /// Writes the message body.
    fn put(self, buffer: &mut EncodeBuf<'_>);
    /// Reads one message body; a `Status` of INTERNAL when it is not one.
    fn take(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status>;
}

impl Wire for Bytes {
    fn put(self, buffer: &mut EncodeBuf<'_>) {
        bytes::BufMut::put(buffer, self);
    }
    fn take(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status> {
        Ok(buffer.copy_to_bytes(buffer.remaining()))
    }
}

macro_rules! wire_message {
    ($($message:ty),*) => {$(
        impl Wire for $message {
            fn put(self, buffer: &mut EncodeBuf<'_>) {
                // The buffer grows as needed, so encoding into it cannot run out of room.
                let _ = self.encode(buffer);
            }
            fn take(buffer: &mut DecodeBuf<'_>) -> Result<Self, Status> {
                Self::decode(buffer).map_err(|error| Status::internal(error.to_string()))
            }
        }
    )*};
}
wire_message!(GetRequest, WatchRequest);

/// Encodes `E` and decodes `D`; which is which depends on the side.
#[derive(Debug)]
pub struct SnapshotCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for SnapshotCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Wire, D: Wire> Codec for SnapshotCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Half<E>;
    type Decoder = Half<D>;

    fn encoder(&mut self) -> Half<E> {
        Half(PhantomData)
    }
    fn decoder(&mut self) -> Half<D> {
        Half(PhantomData)
    }
}

/// One direction of the codec.
#[derive(Debug)]
pub struct Half<T>(PhantomData<T>);

impl<T: Wire> Encoder for Half<T> {
    type Item = T;
    type Error = Status;
    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.put(buffer);
        Ok(())
    }
}

impl<T: Wire> Decoder for Half<T> {
    type Item = T;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        T::take(buffer).map(Some)
    }
}
