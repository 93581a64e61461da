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
use super::seek_table::CONTENT_BYTES_MAX;
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
        if let Some(large) = manifest.baseline.components.iter().find(|one| one.size > CONTENT_BYTES_MAX) {
            return Err(ImportError::TooLarge { path: path.join(&large.payload) });
        }
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
        let mut frames = PackedFrames::new(&mut source, component.size).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::cache::Store;
    use crate::cache::container::{BLOCK, header, padding};
    use crate::cache::seek_table::FRAME_BYTES;
    use crate::error::explain;
    use crate::firmware::signature::Unsigned;

    /// Of frames of zeros, which unpack to 300 GB.
    const MEMBER_BYTES: u64 = 16 * 1024 * 1024;

    /// Gives the same bytes over and over, and knows how many it gave.
    struct Endless<'a> {
        frame: &'a [u8],
        at: usize,
        given: &'a mut u64,
    }

    impl Read for Endless<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let read = (&self.frame[self.at..]).read(into)?;
            self.at = (self.at + read) % self.frame.len();
            *self.given += read as u64;
            Ok(read)
        }
    }

    /// A container whose only payload is announced with `size` bytes and goes on for ever. Why it was refused, and how many
    /// packed bytes were read for that.
    fn refuse(size: u64) -> (String, u64) {
        let state = tempfile::tempdir().unwrap();
        let manifest = format!(
            "id = \"b\"\nversion = \"1\"\ntitle = \"t\"\n[[component]]\nid = \"one\"\ntitle = \"x\"\n\
             version = \"1\"\nformat = \"plain\"\npayload = \"p\"\nsha256 = \"{:064}\"\nsize = {size}\n\
             expected_s = 1\ninstall = {{ command = [\"true\"] }}\nread_back = {{ file = \"/x\" }}\n",
            0
        );
        let object = object_name(format!("{:064}", 0).parse().unwrap());
        let sums = format!("{}  {MANIFEST}\n{:064}  {object}\n", Sha256::of(manifest.as_bytes()), 0);
        let mut begin = Vec::new();
        for (name, text) in [(MANIFEST, &manifest), (SUMS, &sums)] {
            begin.extend(header(name, text.len() as u64));
            begin.extend(text.as_bytes());
            begin.resize(begin.len() + usize::try_from(padding(text.len() as u64)).unwrap(), 0);
        }
        begin.extend(header(&object, MEMBER_BYTES));
        assert_eq!(begin.len() % BLOCK, 0);
        let frame = zstd::bulk::compress(&vec![0; FRAME_BYTES], 19).unwrap();
        let mut given = 0;
        let source = Cursor::new(begin).chain(Endless { frame: &frame, at: 0, given: &mut given });
        let store = Store::at(state.path());
        let importer = Importer::new(store.clone(), None).unwrap().telling(Unsigned::Accept);
        let refused = importer.container(Path::new("hostile"), source, &mut |_, _, _| ()).unwrap_err();
        assert!(store.baselines().unwrap().is_empty());
        (explain(&refused), given)
    }

    #[test]
    fn what_unpacks_to_more_than_announced_is_stopped_there() {
        for size in [5, 2 * FRAME_BYTES as u64, 2 * FRAME_BYTES as u64 + 5] {
            let (why, given) = refuse(size);
            assert!(why.contains(&format!("unpacks to more than the {size} bytes")), "{why}");
            assert!(given < MEMBER_BYTES / 4, "{given} bytes were read");
        }
        let (why, given) = refuse(CONTENT_BYTES_MAX + 1);
        assert!(why.contains("has more than"), "{why}");
        assert_eq!(given, 0);
    }
}
