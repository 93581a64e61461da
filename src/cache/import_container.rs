//! A baseline in one file into the store: its packed payloads as they are, each verified on the way.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use super::ImportError;
use super::container::{Content, Reader, SUMS, SUMS_BYTES_MAX, object_name};
use super::import::{ImportedBaseline, Importer, Payload, Told};
use super::manifest::Manifest;
use super::packed::PackedFrames;
use super::room::Room;
use crate::digest::{Hasher, Sha256};
use crate::firmware::baseline::{MANIFEST, MANIFEST_BYTES_MAX};
use crate::firmware::component::Component;
use crate::firmware::signature::{SIGNATURE, SIGNATURE_BYTES_MAX};

impl Importer {
    /// A baseline in one file, as [`super::export`] writes it. Whether it may be in the cache is known before its first
    /// payload is read.
    ///
    /// # Errors
    /// [`ImportError`]; payloads that were whole stay.
    pub fn container(
        &self,
        path: &Path,
        source: impl Read,
        told: &mut Told<'_>,
    ) -> Result<ImportedBaseline, ImportError> {
        let mut reader = Reader::new(path, source);
        let size = reader.expect(MANIFEST)?;
        let text = reader.whole(size, MANIFEST_BYTES_MAX)?;
        let signature = match reader.begins(SIGNATURE)? {
            Some(size) => Some(reader.whole(size, SIGNATURE_BYTES_MAX)?),
            None => None,
        };
        let mut sums = Sums::read(&mut reader)?;
        for (name, bytes) in [(MANIFEST, Some(&text)), (SIGNATURE, signature.as_ref())] {
            let Some(bytes) = bytes else { continue };
            sums.check(&reader, name, Sha256::of(bytes))?;
        }
        let manifest = Manifest::parse(text, signature, &path.join(MANIFEST))?;
        let entry = self.admit(&manifest, path)?;
        let (mut payloads, mut names) = (Vec::new(), BTreeSet::new());
        for component in manifest.baseline.components.iter().filter(|one| names.insert(one.sha256)) {
            let name = object_name(component.sha256);
            let size = reader.expect(&name)?;
            let expected = sums.next(&reader, &name)?;
            let told = &mut |done| told(&path.join(&component.payload), done, Some(component.size));
            payloads.push(self.packed(path, reader.content(size), (size, expected), component, told)?);
            reader.pad(size)?;
        }
        sums.end(&reader)?;
        reader.end()?;
        self.publish(manifest, entry, payloads)
    }

    /// One payload, packed in `size` bytes with the digest `sum`.
    fn packed<R: Read>(
        &self,
        path: &Path,
        mut source: Content<'_, R>,
        (size, sum): (u64, Sha256),
        component: &Component,
        told: &mut dyn FnMut(u64),
    ) -> Result<Payload, ImportError> {
        let name = path.join(object_name(component.sha256));
        let damaged = |why: &str| ImportError::Damaged { path: name.clone(), at: 0, why: why.to_owned() };
        let judge = |source: Content<'_, R>| match source.finish() {
            (_, missing) if missing > 0 => Err(damaged("the file ends before it does: it was cut")),
            (found, _) if found != sum => Err(damaged(&format!("its SHA-256 is {found}, {SUMS} says {sum}"))),
            _ => Ok(()),
        };
        if let Some(there) = self.there(component.sha256, told) {
            let read = io::copy(&mut source, &mut io::sink());
            read.map_err(|source| ImportError::Source { path: path.to_owned(), source })?;
            return judge(source).map(|()| there);
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged(&error.to_string()),
            _ => ImportError::Source { path: path.to_owned(), source: error },
        };
        let mut frames = PackedFrames::new(&mut source).map_err(failed)?;
        let mut first = Vec::new();
        frames.next(&mut first).map_err(failed)?;
        if first.is_empty() {
            return Err(damaged("it has no content"));
        }
        self.reserve_packed(size, &first)?;
        let mut partial = self.partial(&first)?;
        let (mut hasher, mut done, mut resumed) = (Hasher::new(), 0, 0);
        let mut seen = |content: &[u8]| {
            hasher.update(content);
            done += content.len() as u64;
            told(done);
        };
        let copied = partial
            .take_up(
                first,
                |content| frames.next(content),
                |content| {
                    resumed += content.len() as u64;
                    seen(content);
                },
            )
            .and_then(|mut content| {
                let mut room = Room::of(self.store(), self.max())?;
                while !content.is_empty() {
                    room.take(frames.frame().len() as u64)?;
                    partial.push(frames.frame(), content.len())?;
                    seen(&content);
                    frames.next(&mut content)?;
                }
                frames.tail()
            });
        let of_source = frames.has_failed();
        let tag = match copied {
            Ok(tag) => tag,
            Err(error) if of_source => {
                let _ = partial.keep();
                return Err(failed(error));
            }
            Err(error) => return Err(self.stopped(partial, path, error, false)),
        };
        if let Err(error) = judge(source) {
            partial.discard().map_err(|source| super::import_error::unwritable(self.store(), source))?;
            return Err(error);
        }
        if done != component.size {
            let _ = partial.discard();
            return Err(ImportError::Length { path: name, found: done, expected: component.size });
        }
        // A packing that an earlier import began is another one than the file's.
        let tag = (resumed == 0).then_some(tag);
        let payload = |sha256, stored| Payload { sha256, size: done, stored, resumed, was_there: false };
        self.whole(partial, &name, hasher, Some(component.sha256), tag, payload)
    }
}

/// The digests of the members, in their order.
struct Sums(std::vec::IntoIter<(Sha256, String)>);

impl Sums {
    fn read<R: Read>(reader: &mut Reader<R>) -> Result<Self, ImportError> {
        let size = reader.expect(SUMS)?;
        let bytes = reader.whole(size, SUMS_BYTES_MAX)?;
        let parsed = std::str::from_utf8(&bytes).ok().and_then(|text| {
            let line = |line: &str| {
                let (digest, name) = line.strip_suffix('\n')?.split_once("  ")?;
                let sha256: Sha256 = digest.parse().ok()?;
                (sha256.to_string() == digest).then(|| (sha256, name.to_owned()))
            };
            text.split_inclusive('\n').map(line).collect::<Option<Vec<_>>>()
        });
        match parsed {
            Some(sums) => Ok(Self(sums.into_iter())),
            None => Err(reader.damaged(format!("{SUMS} before is not what sha256sum writes"))),
        }
    }

    fn next<R: Read>(&mut self, reader: &Reader<R>, name: &str) -> Result<Sha256, ImportError> {
        match self.0.next() {
            Some((sum, of)) if of == name => Ok(sum),
            _ => Err(reader.damaged(format!("{SUMS} does not name {name} in its place"))),
        }
    }

    fn check<R: Read>(&mut self, reader: &Reader<R>, name: &str, found: Sha256) -> Result<(), ImportError> {
        let sum = self.next(reader, name)?;
        if sum == found {
            return Ok(());
        }
        Err(reader.damaged(format!("the SHA-256 of {name} is {found}, {SUMS} says {sum}")))
    }

    fn end<R: Read>(&mut self, reader: &Reader<R>) -> Result<(), ImportError> {
        match self.0.next() {
            None => Ok(()),
            Some((_, name)) => Err(reader.damaged(format!("{SUMS} names {name}, which is not here"))),
        }
    }
}
