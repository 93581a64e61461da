//! Payloads and baselines into the store: streamed, hashed on the way, whole or not at all, resumed where they were cut.
//!
//! A baseline's payloads come first and its manifest last, so a baseline that is there is complete. Whether there is room
//! is known before the first byte is written, where the source has a size. It must never make visible what does
//! not hash to what was announced.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::FlockArg;

use super::CacheError;
use super::content::Content;
use super::import_error::{is_full, unwritable};
use super::manifest::Manifest;
use super::pack::{Packing, fill, pack};
use super::partial::Partial;
use super::room::{Room, SPARE_BYTES, free_bytes, packed_bytes_max};
use super::seek_table::{CONTENT_BYTES_MAX, FRAME_BYTES, Tag};
use super::store::{Lock, Store, lock};
use super::tree::Tree;
use crate::digest::{Hasher, Mismatch, Sha256};
use crate::durable;
use crate::firmware::baseline::Baseline;
use crate::firmware::component::{Component, Format};
use crate::firmware::formats::{self, Package, ReadSeek, Trust};
use crate::firmware::signature::{SIGNATURE, Standing, Unsigned};
use crate::paths::{CACHE_ACCEPTED, CACHE_PARTIAL};

pub use super::import_error::ImportError;

/// zstd's level for what is imported: much of firmware does not shrink at any level, the rest is read from sticks.
pub const LEVEL: i32 = 3;

/// A payload that is in the store now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Its name.
    pub sha256: Sha256,
    /// Bytes of its content.
    pub size: u64,
    /// Bytes it takes.
    pub stored: u64,
    /// Bytes of content that an import before this one had brought.
    pub resumed: u64,
    /// It was there already.
    pub was_there: bool,
}

/// A baseline that is in the store now.
#[derive(Debug)]
pub struct ImportedBaseline {
    /// What it says.
    pub baseline: Baseline,
    /// Its payloads, each once.
    pub payloads: Vec<Payload>,
    /// All of it was there already.
    pub was_there: bool,
    /// Why it may be used.
    pub standing: Standing,
}

/// A baseline that may be imported.
pub(super) struct Entry {
    target: PathBuf,
    standing: Standing,
}

/// What a payload should be; nothing is known of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// Its name.
    pub sha256: Option<Sha256>,
    /// Bytes of its content.
    pub size: Option<u64>,
}

/// Hears of each step: the source, bytes of it that are done, and how many there are.
pub type Told<'a> = dyn FnMut(&Path, u64, Option<u64>) + 'a;

/// What imports into a store. While one lives nothing is removed from it.
pub struct Importer {
    store: Store,
    max: Option<u64>,
    packing: Packing,
    trust: Trust,
    unsigned: Unsigned,
    _lock: Lock,
}

impl Importer {
    /// Into `store`, whose payloads may take `max` bytes. Waits for who removes.
    ///
    /// # Errors
    /// [`ImportError::Store`].
    pub fn new(store: Store, max: Option<u64>) -> Result<Self, ImportError> {
        let lock = store.lock_shared().map_err(|source| unwritable(&store, source))?;
        Ok(Self {
            store,
            max,
            packing: Packing::at_level(LEVEL),
            trust: Trust::default(),
            unsigned: Unsigned::Refuse,
            _lock: lock,
        })
    }

    /// The same; signed packages must lead to these certificates.
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Reads a cabinet that is in the store, or is to come there: what is malformed, is not what its checksums say, or is
    /// not signed as it must be, is refused.
    fn check_cabinet(&self, name: &str, reader: &mut dyn ReadSeek) -> Result<(), ImportError> {
        Ok(formats::read_from(name, reader, &self.trust).map(drop)?)
    }

    /// A file by itself, where it is a cabinet. What a baseline names is read when it is in the store: a stick's content
    /// need not be the same twice.
    fn check_file(&self, path: &Path, file: &File) -> Result<(), ImportError> {
        let unreadable = |source| ImportError::Source { path: path.to_owned(), source };
        let mut start = [0; 4];
        file.read_at(&mut start, 0).map_err(unreadable)?;
        if !formats::is_cabinet(&start) {
            return Ok(());
        }
        let mut again = File::open(path).map_err(unreadable)?;
        self.check_cabinet(&path.display().to_string(), &mut again)
    }

    /// What a package in the store says; signatures are checked where certificates are given.
    pub(super) fn stored_package(&self, name: &str, sha256: Sha256) -> Result<Package, ImportError> {
        let unreadable = |source| unwritable(&self.store, source);
        let object = self.store.object(sha256).map_err(unreadable)?;
        let mut content = Content::new(object).map_err(unreadable)?;
        Ok(formats::read_from(name, &mut content, &self.trust)?)
    }

    /// What certificates packages must lead to.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    fn check_stored(&self, component: &Component) -> Result<(), ImportError> {
        if component.format != Format::LvfsCab {
            return Ok(());
        }
        let unreadable = |source| unwritable(&self.store, source);
        let object = self.store.object(component.sha256).map_err(unreadable)?;
        self.check_cabinet(&component.payload, &mut Content::new(object).map_err(unreadable)?)
    }

    /// What is done with baselines that nobody who is trusted has signed.
    #[must_use = "the importer that was told is what is returned"]
    pub fn telling(self, unsigned: Unsigned) -> Self {
        Self { unsigned, ..self }
    }

    /// A file.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn file(&self, path: &Path, expected: Expected, told: &mut Told<'_>) -> Result<Payload, ImportError> {
        let mut seen = |done| told(path, done, expected.size);
        if let Some(there) = expected.sha256.and_then(|sha256| self.there(sha256, &mut seen)) {
            return Ok(there);
        }
        let unreadable = |source| ImportError::Source { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(ImportError::Nothing { path: path.to_owned() });
        }
        if expected.sha256.is_none() && metadata.is_file() {
            self.check_file(path, &file)?;
        }
        // A pipe has no size.
        let size = expected.size.or(metadata.is_file().then_some(metadata.len()));
        self.stream(path, file, Expected { size, ..expected }, told)
    }

    /// Whatever a reader yields; `name` stands for it in errors.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn stream(
        &self,
        name: &Path,
        source: impl Read,
        expected: Expected,
        told: &mut Told<'_>,
    ) -> Result<Payload, ImportError> {
        if expected.size.is_some_and(|size| size > CONTENT_BYTES_MAX) {
            return Err(ImportError::TooLarge { path: name.to_owned() });
        }
        // One byte more than announced tells that there are more.
        let most = expected.size.unwrap_or(CONTENT_BYTES_MAX).saturating_add(1);
        let mut source = Watched { source: source.take(most), failed: false };
        let mut first = Vec::new();
        let unreadable = |source| ImportError::Source { path: name.to_owned(), source };
        fill(&mut source, &mut first).map_err(unreadable)?;
        if first.is_empty() {
            return Err(ImportError::Nothing { path: name.to_owned() });
        }
        if let Some(size) = expected.size {
            self.reserve_packed(packed_bytes_max(size), &first)?;
        }
        let mut partial = self.partial(&first)?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        let mut seen = |content: &[u8]| {
            hasher.update(content);
            size += content.len() as u64;
            told(name, size, expected.size);
        };
        let mut resumed = 0;
        let copied = partial
            .take_up(
                first,
                |content| fill(&mut source, content),
                |content| {
                    resumed += content.len() as u64;
                    seen(content);
                },
            )
            .and_then(|rest| {
                let rest = rest.chain(&mut source);
                let mut room = Room::of(&self.store, self.max)?;
                pack(rest, self.packing, &mut seen, |frame, content| {
                    room.take(frame.len() as u64)?;
                    partial.push(frame, content)
                })
            });
        if let Err(error) = copied {
            return Err(self.stopped(partial, name, error, source.failed));
        }
        if size > CONTENT_BYTES_MAX {
            let _ = partial.discard();
            return Err(ImportError::TooLarge { path: name.to_owned() });
        }
        if let Some(expected) = expected.size.filter(|expected| *expected != size) {
            let _ = partial.keep();
            return Err(ImportError::Length { path: name.to_owned(), found: size, expected });
        }
        self.whole(partial, name, hasher, expected.sha256, None, |sha256, stored| Payload {
            sha256,
            size,
            stored,
            resumed,
            was_there: false,
        })
    }

    /// A payload that is there and right. All of it is read: a seek table says nothing of what is in the frames, and
    /// whoever imports again may do so since it is damaged.
    pub(super) fn there(&self, sha256: Sha256, seen: &mut dyn FnMut(u64)) -> Option<Payload> {
        let path = self.store.object_path(sha256);
        let object = self.store.object(sha256).ok()?;
        let mut done = 0;
        let verified = object.verify(sha256, |bytes| {
            done += bytes as u64;
            seen(done);
        });
        verified.ok()?;
        let stored = path.metadata().ok()?.len();
        Some(Payload { sha256, size: object.size(), stored, resumed: 0, was_there: true })
    }

    /// Where it imports to.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Most bytes that payloads may take.
    pub(super) fn max(&self) -> Option<u64> {
        self.max
    }

    /// Room for a payload of so many packed bytes whose content begins with `first`.
    pub(super) fn reserve_packed(&self, bytes: u64, first: &[u8]) -> Result<(), ImportError> {
        let begun = self.partial_path(first).metadata().map_or(0, |partial| partial.len());
        self.reserve(bytes.saturating_sub(begun))
    }

    fn partial_path(&self, first: &[u8]) -> PathBuf {
        self.store.root().join(CACHE_PARTIAL).join(Sha256::of(first).to_string())
    }

    pub(super) fn partial(&self, first: &[u8]) -> Result<Partial, ImportError> {
        durable::create_directory(&self.store.root().join(CACHE_PARTIAL))
            .and_then(|()| Partial::open(self.partial_path(first)))
            .map_err(|source| unwritable(&self.store, source))
    }

    /// What is left of an import that ends early.
    pub(super) fn stopped(
        &self,
        partial: Partial,
        name: &Path,
        error: io::Error,
        of_source: bool,
    ) -> ImportError {
        if of_source {
            let _ = partial.keep();
            return ImportError::Source { path: name.to_owned(), source: error };
        }
        // What has no number is not the system's: there is too little room, but not none yet.
        let ours = error.raw_os_error().is_none();
        if let (true, io::ErrorKind::FileTooLarge, Some(max)) = (ours, error.kind(), self.max) {
            let used = self.store.used();
            let _ = partial.discard();
            return match used {
                Ok(used) => ImportError::Limit { needed: FRAME_BYTES as u64, used, max },
                Err(error) => unwritable(&self.store, error),
            };
        }
        if is_full(&error) {
            if ours {
                let _ = partial.keep();
            } else {
                partial.give_back();
            }
        }
        unwritable(&self.store, error)
    }

    /// Everything was read: a payload, if it is the right one.
    pub(super) fn whole(
        &self,
        partial: Partial,
        name: &Path,
        hasher: Hasher,
        expected: Option<Sha256>,
        tag: Option<Tag>,
        payload: impl FnOnce(Sha256, u64) -> Payload,
    ) -> Result<Payload, ImportError> {
        let failed = |source| unwritable(&self.store, source);
        let found = hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            partial.discard().map_err(failed)?;
            let source = Mismatch { expected, found };
            return Err(ImportError::Content { path: name.to_owned(), source });
        }
        // One that is damaged is replaced.
        if let Some(there) = self.there(found, &mut |_| ()) {
            partial.discard().map_err(failed)?;
            return Ok(there);
        }
        match partial.publish(&self.store.object_path(found), tag) {
            Ok(stored) => Ok(payload(found, stored)),
            Err(error) => Err(failed(error)),
        }
    }

    /// A baseline's files: each payload that is not there yet, then the manifest.
    ///
    /// # Errors
    /// [`ImportError`]; payloads that were whole stay.
    pub fn baseline(&self, tree: &Tree, told: &mut Told<'_>) -> Result<ImportedBaseline, ImportError> {
        let manifest = Manifest::of(tree)?;
        let entry = self.admit(&manifest, tree.root())?;
        self.reserve_all(tree, &manifest.baseline)?;
        let (mut payloads, mut names) = (Vec::new(), BTreeSet::new());
        for component in manifest.baseline.components.iter().filter(|one| names.insert(one.sha256)) {
            let expected = Expected { sha256: Some(component.sha256), size: Some(component.size) };
            payloads.push(self.member(tree, &component.payload, expected, told)?);
        }
        self.publish(manifest, entry, payloads)
    }

    /// A file of a baseline.
    fn member(
        &self,
        tree: &Tree,
        name: &str,
        expected: Expected,
        told: &mut Told<'_>,
    ) -> Result<Payload, ImportError> {
        let path = tree.path(name);
        let mut seen = |done| told(&path, done, expected.size);
        if let Some(there) = expected.sha256.and_then(|sha256| self.there(sha256, &mut seen)) {
            return Ok(there);
        }
        let unreadable = |source| ImportError::Source { path: path.clone(), source };
        let opened = tree.open(name).map_err(unreadable)?;
        let (source, _) = opened.ok_or_else(|| unreadable(io::ErrorKind::NotFound.into()))?;
        self.stream(&path, source, expected, told)
    }

    /// Whether a baseline may be in the cache: its version can be a name, no other is there under it, and somebody
    /// vouches for it. Asked before the first payload is read.
    pub(super) fn admit(&self, manifest: &Manifest, place: &Path) -> Result<Entry, ImportError> {
        let (id, version) = (manifest.baseline.id.to_string(), manifest.baseline.version.clone());
        if !can_be_a_name(&version) {
            return Err(ImportError::Version { id, version });
        }
        let anchors = self.store.trust().anchors().map_err(CacheError::from)?;
        let standing = match manifest.judge(&anchors) {
            Ok(standing) => standing,
            Err(why) if self.unsigned == Unsigned::Accept => Standing::Unsigned { why: why.to_string() },
            Err(source) => {
                let name = format!("{} in {}", manifest.name(), place.display());
                return Err(CacheError::Untrusted { name, source }.into());
            }
        };
        let target = self.store.manifest_path(&id, &version);
        same_manifest(&target, manifest)?;
        Ok(Entry { target, standing })
    }

    /// A baseline that was made here, of payloads that are there: nobody has signed it, so it is admitted as any other
    /// unsigned one.
    pub(super) fn made(
        &self,
        manifest: Manifest,
        payloads: Vec<Payload>,
        place: &Path,
        why: &str,
    ) -> Result<ImportedBaseline, ImportError> {
        let entry = self.admit(&manifest, place)?;
        let standing = Standing::Unsigned { why: why.to_owned() };
        self.publish(manifest, Entry { standing, ..entry }, payloads)
    }

    /// Whether baselines are taken that nobody who is trusted has signed.
    pub(super) fn takes_unsigned(&self) -> bool {
        self.unsigned == Unsigned::Accept
    }

    /// Makes the baseline visible: its payloads are there. Of two that import the same version at once, the second finds
    /// the first's manifest.
    pub(super) fn publish(
        &self,
        manifest: Manifest,
        entry: Entry,
        payloads: Vec<Payload>,
    ) -> Result<ImportedBaseline, ImportError> {
        for component in &manifest.baseline.components {
            self.check_stored(component)?;
        }
        let Entry { target, standing } = entry;
        let failed = |source| unwritable(&self.store, source);
        let folder = target.parent().unwrap_or(self.store.root());
        durable::create_directory(folder).map_err(failed)?;
        let _alone =
            File::open(folder).and_then(|file| lock(file, FlockArg::LockExclusive)).map_err(failed)?;
        let is_new = !same_manifest(&target, &manifest)?;
        let vouched = self.vouch(&manifest, &target, &standing, is_new).map_err(failed)?;
        if is_new {
            durable::write(&target, manifest.text.as_bytes(), 0o600).map_err(failed)?;
        }
        let was_there = !is_new && !vouched && payloads.iter().all(|payload| payload.was_there);
        Ok(ImportedBaseline { baseline: manifest.baseline, payloads, was_there, standing })
    }

    /// Writes beside the manifest what vouches for it; before a new manifest, so that it is never there without. Whether
    /// anything was changed.
    fn vouch(
        &self,
        manifest: &Manifest,
        target: &Path,
        standing: &Standing,
        is_new: bool,
    ) -> io::Result<bool> {
        let (signature, accepted) = (target.with_file_name(SIGNATURE), target.with_file_name(CACHE_ACCEPTED));
        let sha256 = manifest.sha256();
        let is_signed = !matches!(standing, Standing::Unsigned { .. });
        let mut changed = false;
        match &manifest.signature {
            // A wrong one never takes a right one's place.
            Some(bytes)
                if (is_new || is_signed) && std::fs::read(&signature).ok().as_ref() != Some(bytes) =>
            {
                durable::write(&signature, bytes, 0o600)?;
                changed = true;
            }
            None if is_new => durable::remove(&signature)?,
            _ => {}
        }
        if is_signed {
            changed |= accepted.exists();
            durable::remove(&accepted)?;
        } else if !self.store.accepts(target, sha256) {
            durable::write(&accepted, format!("{sha256}\n").as_bytes(), 0o600)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Presence and sizes of all payloads, and room for those that are missing, before the first is brought in. Of what
    /// cut imports left, that counts which the same source has begun.
    fn reserve_all(&self, tree: &Tree, baseline: &Baseline) -> Result<(), ImportError> {
        let partials = self.store.partials().map_err(|source| unwritable(&self.store, source))?;
        let mut partials: HashMap<PathBuf, u64> = partials.into_iter().collect();
        let (mut needed, mut names) = (0_u64, BTreeSet::new());
        for component in &baseline.components {
            if self.store.contains(component.sha256) || !names.insert(component.sha256) {
                continue;
            }
            let path = tree.path(&component.payload);
            let found = match tree.size(&component.payload) {
                Ok(size) => size,
                Err(source) => return Err(ImportError::Source { path, source }),
            };
            if found != component.size {
                return Err(ImportError::Length { path, found, expected: component.size });
            }
            let mut begun = 0;
            if !partials.is_empty() {
                let mut first = Vec::new();
                let opened = tree.open(&component.payload);
                let read =
                    opened.and_then(|file| file.map_or(Ok(()), |(mut file, _)| fill(&mut file, &mut first)));
                read.map_err(|source| ImportError::Source { path, source })?;
                begun = partials.remove(&self.partial_path(&first)).unwrap_or(0);
            }
            needed = needed.saturating_add(packed_bytes_max(component.size).saturating_sub(begun));
        }
        if needed == 0 { Ok(()) } else { self.reserve(needed) }
    }

    /// Whether so many more bytes fit.
    fn reserve(&self, needed: u64) -> Result<(), ImportError> {
        let failed = |source: io::Error| unwritable(&self.store, source);
        let root = self.store.root();
        if let Some(max) = self.max {
            let used = self.store.used().map_err(failed)?;
            if used.saturating_add(needed) > max {
                return Err(ImportError::Limit { needed, used, max });
            }
        }
        let free = free_bytes(root).map_err(failed)?;
        let needed = needed.saturating_add(SPARE_BYTES);
        if needed > free {
            return Err(ImportError::Space { path: root.to_owned(), needed, free });
        }
        Ok(())
    }
}

/// Whether a version can be a directory's name: letters, digits and `. _ + -`, 64 at most, no dot first.
pub fn can_be_a_name(version: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    (1..=64).contains(&version.len()) && !version.starts_with('.') && version.chars().all(plain)
}

/// Whether the same manifest is there; another one under its name is refused.
fn same_manifest(target: &Path, manifest: &Manifest) -> Result<bool, ImportError> {
    match std::fs::read(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ImportError::Store { path: target.to_owned(), source }),
        Ok(there) if there == manifest.text.as_bytes() => Ok(true),
        Ok(_) => {
            let (id, version) = (manifest.baseline.id.to_string(), manifest.baseline.version.clone());
            Err(ImportError::Conflict { id, version })
        }
    }
}

/// A source that remembers that it failed.
struct Watched<R> {
    source: R,
    failed: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(into);
        self.failed |= matches!(&read, Err(error) if error.kind() != io::ErrorKind::Interrupted);
        read
    }
}
