//! A filter between the broker's socket and lapin: it checks each incoming frame, and repairs or
//! refuses it before lapin parses it.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncRead as TokioRead, AsyncWrite as TokioWrite, ReadBuf};

use super::address::FRAME_MAX;
use super::frame::{self, BODY, FRAME_END, HEADER, HEARTBEAT, METHOD, Method, OVERHEAD, PREFIX};

/// Bytes per read from the socket.
const BUFFER: usize = 64 * 1024;
/// The largest method or content header that is inspected. A larger one ends the connection.
const MAX_INSPECTED: usize = 1024 * 1024;
/// Both sides must accept frames of this size (AMQP 0-9-1, section 4.2.3).
const MIN_FRAME_MAX: usize = 4096;
/// When at least this many bytes of a body remain, they are read from the socket directly into lapin's
/// buffer.
const DIRECT: usize = 4096;

/// A stream whose incoming frames are safe to parse.
#[derive(Debug)]
pub(super) struct Guard<S> {
    stream: S,
    frames: Frames,
}

impl<S> Guard<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, frames: Frames::new() }
    }
}

impl<S: TokioRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, frames } = &mut *self;
        loop {
            let written = frames.take(out)?;
            if written > 0 || out.is_empty() {
                return Poll::Ready(Ok(written));
            }
            let direct = frames.passing().min(out.len());
            let mut buffer = if direct >= DIRECT {
                ReadBuf::new(&mut out[..direct])
            } else {
                ReadBuf::new(frames.spare_capacity())
            };
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            let read = buffer.filled().len();
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            if direct >= DIRECT {
                frames.passed(read);
                return Poll::Ready(Ok(read));
            }
            frames.filled(read);
        }
    }
}

impl<S: TokioWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Incoming frames, in pieces of any size. Bodies pass through; methods and content headers are
/// buffered until they are complete.
#[derive(Debug)]
pub(super) struct Frames {
    input: Vec<u8>,
    /// The start of the bytes of `input` that are read and not yet passed on.
    start: usize,
    end: usize,
    /// How many bytes to pass on unchanged.
    pass: usize,
    /// The size of the frame at `start`, once it is known.
    wanted: usize,
    /// A rewritten frame, and how many bytes of it were passed on.
    rewritten: Vec<u8>,
    sent: usize,
    frame_max: usize,
    has_begun: bool,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            input: vec![0; BUFFER],
            start: 0,
            end: 0,
            pass: 0,
            wanted: 0,
            rewritten: Vec::new(),
            sent: 0,
            frame_max: usize::try_from(FRAME_MAX).unwrap_or(BUFFER),
            has_begun: false,
        }
    }

    /// The buffer for the next read: never empty.
    pub(super) fn spare_capacity(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.input.len() > BUFFER && self.wanted <= BUFFER {
                self.input.truncate(BUFFER);
                self.input.shrink_to_fit();
            }
        } else if self.end == self.input.len() || self.start + self.wanted > self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.input.len() < self.wanted {
            self.input.resize(self.wanted, 0);
        }
        &mut self.input[self.end..]
    }

    /// Records how many bytes were read into the buffer.
    pub(super) fn filled(&mut self, size: usize) {
        self.end = (self.end + size).min(self.input.len());
    }

    /// How many bytes may go from the socket to lapin unchanged; 0 while other bytes must be passed on
    /// first.
    fn passing(&self) -> usize {
        if self.start == self.end && self.sent == self.rewritten.len() { self.pass } else { 0 }
    }

    fn passed(&mut self, size: usize) {
        self.pass -= size.min(self.pass);
    }

    /// Moves safe bytes to `out`. Returns 0 when more must be read first.
    ///
    /// # Errors
    /// A frame cannot be made safe. The bytes before it have been passed on by then.
    pub(super) fn take(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < out.len() {
            let remaining = &mut out[written..];
            if self.sent < self.rewritten.len() {
                let size = copy(&self.rewritten[self.sent..], remaining);
                self.sent += size;
                written += size;
            } else if self.pass > 0 {
                let end = self.end.min(self.start.saturating_add(self.pass));
                let size = copy(&self.input[self.start..end], remaining);
                if size == 0 {
                    break;
                }
                self.start += size;
                self.pass -= size;
                written += size;
            } else {
                match self.next_frame() {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The error is returned at the next read, because the bytes before it are good.
                    Err(_) if written > 0 => break,
                    Err(why) => return Err(io::Error::new(ErrorKind::InvalidData, why)),
                }
            }
        }
        Ok(written)
    }

    /// Checks the frame at `start`, and makes bytes of it ready to be passed on. Returns `false` when
    /// more of it must be read first. An error changes nothing.
    fn next_frame(&mut self) -> Result<bool, String> {
        let input = &mut self.input[self.start..self.end];
        let Some(kind) = input.first().copied() else { return Ok(false) };
        if !self.has_begun {
            if kind == b'A' {
                // The broker speaks another protocol version, names it, and closes.
                self.pass = usize::MAX;
                return Ok(true);
            }
            if kind != METHOD {
                return Err(format!("the peer does not speak AMQP (its first byte is {kind})"));
            }
        }
        let Some(prefix) = input.first_chunk::<PREFIX>() else { return Ok(false) };
        let channel = [prefix[1], prefix[2]];
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let whole = size.saturating_add(OVERHEAD);
        match kind {
            BODY | HEARTBEAT if whole <= self.frame_max => {
                self.pass = whole;
                return Ok(true);
            }
            METHOD | HEADER if size <= MAX_INSPECTED => {}
            METHOD | HEADER | BODY | HEARTBEAT => {
                return Err(format!("a frame of type {kind} with {size} bytes is too large"));
            }
            _ => return Err(format!("a frame of unknown type {kind}")),
        }
        self.wanted = whole;
        if input.len() < whole {
            return Ok(false);
        }
        if input[whole - 1] != FRAME_END {
            return Err(format!("a frame of type {kind} does not end where it should"));
        }
        let payload = &mut input[PREFIX..whole - 1];
        if kind == METHOD {
            if let Method::Tune(limit @ 1..) = frame::check_method(payload)? {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX).max(MIN_FRAME_MAX);
                self.frame_max = self.frame_max.min(limit);
            }
            self.has_begun = true;
            self.pass = whole;
        } else {
            self.rewritten.clear();
            self.sent = 0;
            frame::rewrite_header(channel, payload, self.frame_max, &mut self.rewritten)?;
            self.start += whole;
        }
        self.wanted = 0;
        Ok(true)
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let size = from.len().min(to.len());
    to[..size].copy_from_slice(&from[..size]);
    size
}

#[cfg(test)]
mod tests;
