//! Microsoft cabinets, as LVFS uses them: stored or MSZIP, one file, no set of several.
//!
//! Our own reader because the one crate for it indexes past its blocks when a member's offset lies, and cannot say at
//! which byte a cabinet is wrong. Structures as in \[MS-CAB\]. Blocks are decoded one at a time (32 KiB), so memory
//! does not grow with a payload; how many bytes are decoded in all is bounded too. LZX and Quantum are refused, as fwupd does.

use flate2::{Decompress, FlushDecompress};

use super::error::{Fault, FormatError};
use super::source::{Fields, Source};

/// What a cabinet begins with.
pub const SIGNATURE: &[u8] = b"MSCF";

const HEADER_BYTES: usize = 36;
/// Members, and folders: LVFS's have a handful.
const MEMBERS_MAX: u64 = 4096;
/// \[MS-CAB\] 2.4: a name has at most 255 bytes and its NUL.
const NAME_BYTES_MAX: usize = 255;
/// All directory structures together.
const DIRECTORY_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// \[MS-CAB\] 2.6: a block unpacks to at most 32 KiB, the window of MSZIP.
const BLOCK_BYTES_MAX: u16 = 32 * 1024;
/// Unpacked bytes of one cabinet, those that are skipped included: what hostile folders can make us decode.
const DECODED_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

const FLAG_PREVIOUS: u16 = 1;
const FLAG_NEXT: u16 = 2;
const FLAG_RESERVE: u16 = 4;

/// A cabinet's directory.
pub struct Cabinet {
    /// The files in it.
    pub members: Vec<Member>,
    folders: Vec<Folder>,
    block_reserve: u8,
    decoded: u64,
}

/// A file in a cabinet.
#[derive(Clone)]
pub struct Member {
    /// Its name, with `/` between directories.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    folder: u16,
    /// Where it begins in its folder's unpacked bytes.
    start: u64,
}

struct Folder {
    data: u64,
    blocks: u16,
    packing: Packing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    Stored,
    MsZip,
}

impl Cabinet {
    /// Reads the directory.
    ///
    /// # Errors
    /// When it is not one that is read here.
    pub fn open(source: &mut Source<'_>) -> Result<Self, FormatError> {
        let name = source.name().to_owned();
        let header = Header::read(source)?;
        let start = HEADER_BYTES as u64;
        let length = header.size.saturating_sub(start).min(DIRECTORY_BYTES_MAX);
        let rest = source.bytes(start, length as usize, "the cabinet's directory")?;
        let mut fields = Fields::new(&name, &rest, start);
        let (mut folder_reserve, mut block_reserve) = (0, 0);
        if header.flags & FLAG_RESERVE != 0 {
            let reserve = fields.u16("the size of the reserved area")?;
            folder_reserve = fields.u8("the size of the folders' reserved areas")?;
            block_reserve = fields.u8("the size of the blocks' reserved areas")?;
            fields.take(usize::from(reserve), "the reserved area")?;
        }
        let folders = (0..header.folders).map(|_| folder(&mut fields, folder_reserve));
        let folders = folders.collect::<Result<Vec<_>, _>>()?;
        let skip = header.files_at.checked_sub(start).filter(|skip| *skip <= length);
        let skip = skip.ok_or_else(|| source.error(16, Fault::Truncated("the offset of the files")))?;
        let mut fields = Fields::new(&name, &rest, start);
        fields.take(skip as usize, "what precedes the files")?;
        let members = (0..header.files).map(|_| member(&mut fields, folders.len()));
        let members: Vec<Member> = members.collect::<Result<_, _>>()?;
        // Who looks a name up must find what was checked under it.
        let mut names = std::collections::BTreeSet::new();
        if let Some(twice) = members.iter().find(|member| !names.insert(member.name.as_str())) {
            return Err(source.error(None, Fault::Malformed(format!("{} stands in it twice", twice.name))));
        }
        Ok(Self { members, folders, block_reserve, decoded: 0 })
    }

    /// Hands a member's bytes to `take`, piece by piece.
    ///
    /// # Errors
    /// When the cabinet is damaged, or too much of it was decoded.
    pub fn copy(
        &mut self,
        source: &mut Source<'_>,
        member: &Member,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), FormatError> {
        let Some(folder) = self.folders.get(usize::from(member.folder)) else {
            return Err(source.error(None, Fault::Missing(format!("the folder of {}", member.name))));
        };
        let (end, mut at, mut unpacked) = (member.start + member.size, folder.data, 0_u64);
        let mut window = Vec::new();
        for _ in 0..folder.blocks {
            if unpacked >= end {
                break;
            }
            let block = Block::read(source, at, self.block_reserve)?;
            let (next, size) = (block.next, u64::from(block.unpacked));
            let from = member.start.saturating_sub(unpacked).min(size) as usize;
            let to = (end - unpacked).min(size) as usize;
            // A stored block before the member needs no look.
            if folder.packing == Packing::MsZip || from < to {
                let bytes = block.decode(source, folder.packing, &mut window)?;
                take(bytes.get(from..to).unwrap_or_default());
                self.decoded += size;
            }
            unpacked += size;
            at = next;
            if self.decoded > DECODED_BYTES_MAX {
                let what = "the number of unpacked bytes";
                return Err(
                    source.error(at, Fault::Limit { what, found: self.decoded, limit: DECODED_BYTES_MAX })
                );
            }
        }
        if unpacked < end {
            let why = format!("{} ends at byte {end} of its folder, which has {unpacked}", member.name);
            return Err(source.error(at, Fault::Malformed(why)));
        }
        Ok(())
    }

    /// A small member whole.
    ///
    /// # Errors
    /// When it is larger than `limit`, or the cabinet is damaged.
    pub fn read(
        &mut self,
        source: &mut Source<'_>,
        member: &Member,
        limit: u64,
    ) -> Result<Vec<u8>, FormatError> {
        if member.size > limit {
            let fault =
                Fault::Limit { what: "the size of a file that describes others", found: member.size, limit };
            return Err(FormatError {
                file: format!("{}: {}", source.name(), member.name),
                offset: None,
                fault,
            });
        }
        let mut bytes = Vec::new();
        self.copy(source, member, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }
}

/// \[MS-CAB\] 2.1, CFHEADER up to its optional fields.
struct Header {
    size: u64,
    files_at: u64,
    folders: u16,
    files: u16,
    flags: u16,
}

impl Header {
    fn read(source: &mut Source<'_>) -> Result<Self, FormatError> {
        let name = source.name().to_owned();
        let bytes = source.bytes(0, HEADER_BYTES, "the cabinet's header")?;
        let mut fields = Fields::new(&name, &bytes, 0);
        fields.take(8, "the signature")?;
        let size = u64::from(fields.u32("the cabinet's size")?);
        if size > source.size() {
            return Err(source.error(8, Fault::Truncated("the cabinet's announced size")));
        }
        fields.take(4, "a reserved field")?;
        let files_at = u64::from(fields.u32("the offset of the files")?);
        fields.take(4, "a reserved field")?;
        let (minor, major) = (fields.u8("the version")?, fields.u8("the version")?);
        if (major, minor) != (1, 3) {
            return Err(source.error(24, Fault::Unsupported(format!("cabinet version {major}.{minor}"))));
        }
        let (folders, files) = (fields.u16("the number of folders")?, fields.u16("the number of files")?);
        for (count, at) in [(folders, 26), (files, 28)] {
            let (what, found) = ("the number of folders or files", u64::from(count));
            if found > MEMBERS_MAX {
                return Err(source.error(at, Fault::Limit { what, found, limit: MEMBERS_MAX }));
            }
        }
        let flags = fields.u16("the flags")?;
        if flags & (FLAG_PREVIOUS | FLAG_NEXT) != 0 {
            return Err(source.error(30, Fault::Unsupported("one cabinet of a set of several".into())));
        }
        Ok(Self { size, files_at, folders, files, flags })
    }
}

/// \[MS-CAB\] 2.3, CFFOLDER.
fn folder(fields: &mut Fields<'_>, reserve: u8) -> Result<Folder, FormatError> {
    let data = u64::from(fields.u32("the offset of a folder's data")?);
    let blocks = fields.u16("the number of a folder's blocks")?;
    let packing = fields.u16("a folder's compression")?;
    let packing = match packing & 0xf {
        0 => Packing::Stored,
        1 => Packing::MsZip,
        2 => return Err(fields.error(Fault::Unsupported("Quantum compression".into()))),
        3 => return Err(fields.error(Fault::Unsupported("LZX compression".into()))),
        other => return Err(fields.error(Fault::Unsupported(format!("compression {other}")))),
    };
    fields.take(usize::from(reserve), "a folder's reserved area")?;
    Ok(Folder { data, blocks, packing })
}

/// \[MS-CAB\] 2.4, CFFILE.
fn member(fields: &mut Fields<'_>, folders: usize) -> Result<Member, FormatError> {
    let size = u64::from(fields.u32("a file's size")?);
    let start = u64::from(fields.u32("a file's offset")?);
    let folder = fields.u16("a file's folder")?;
    if usize::from(folder) >= folders {
        return Err(fields.error(Fault::Malformed(format!("a file is in folder {folder} of {folders}"))));
    }
    fields.take(6, "a file's date, time and attributes")?;
    let place = fields.position();
    let name = fields.until_nul(NAME_BYTES_MAX, "a file's name")?;
    let name = String::from_utf8_lossy(name).replace('\\', "/");
    super::error::plain_path(&name)
        .map_err(|fault| FormatError { offset: Some(place), ..fields.error(fault) })?;
    Ok(Member { name, size, folder, start })
}

/// A block, still packed.
struct Block {
    at: u64,
    next: u64,
    unpacked: u16,
    bytes: Vec<u8>,
}

impl Block {
    /// \[MS-CAB\] 2.6, CFDATA; the checksum is checked where there is one.
    fn read(source: &mut Source<'_>, at: u64, reserve: u8) -> Result<Self, FormatError> {
        let header = source.bytes(at, 8 + usize::from(reserve), "a block's header")?;
        let name = source.name().to_owned();
        let mut fields = Fields::new(&name, &header, at);
        let announced = fields.u32("a block's checksum")?;
        let (packed, unpacked) = (fields.u16("a block's size")?, fields.u16("a block's size")?);
        if unpacked == 0 || unpacked > BLOCK_BYTES_MAX {
            return Err(
                source.error(at + 6, Fault::Malformed(format!("a block unpacks to {unpacked} bytes")))
            );
        }
        let data = at + header.len() as u64;
        let bytes = source.bytes(data, usize::from(packed), "a block")?;
        let found = sum(header.get(4..).unwrap_or_default()) ^ sum(&bytes);
        if announced != 0 && announced != found {
            let (expected, found) = (format!("{announced:08x}").into(), format!("{found:08x}").into());
            let what = "a block".into();
            return Err(source
                .error(at, Fault::Checksum { what, algorithm: "the cabinet's checksum", expected, found }));
        }
        Ok(Self { at, next: data + u64::from(packed), unpacked, bytes })
    }

    /// The unpacked bytes; `window` is what the folder unpacked to before, and is moved on.
    fn decode<'w>(
        self,
        source: &Source<'_>,
        packing: Packing,
        window: &'w mut Vec<u8>,
    ) -> Result<&'w [u8], FormatError> {
        let refuse = |why: &str| source.error(self.at, Fault::Malformed(why.to_owned()));
        if packing == Packing::Stored {
            if self.bytes.len() != usize::from(self.unpacked) {
                return Err(refuse("a stored block has two sizes"));
            }
            *window = self.bytes;
            return Ok(window);
        }
        let deflated =
            self.bytes.strip_prefix(b"CK").ok_or_else(|| refuse("an MSZIP block begins with \"CK\""))?;
        // MSZIP goes on with the last block's bytes as its dictionary: given as a stored block of deflate's own.
        let length = window.len() as u16;
        let mut input = Vec::with_capacity(5 + window.len() + deflated.len());
        if length > 0 {
            input.push(0);
            input.extend_from_slice(&length.to_le_bytes());
            input.extend_from_slice(&(!length).to_le_bytes());
            input.extend_from_slice(window);
        }
        input.extend_from_slice(deflated);
        let wanted = window.len() + usize::from(self.unpacked);
        let mut output = vec![0; wanted + 1];
        let mut inflate = Decompress::new(false);
        let unpacked = inflate.decompress(&input, &mut output, FlushDecompress::Finish);
        unpacked.map_err(|_| refuse("an MSZIP block does not unpack"))?;
        if inflate.total_out() != wanted as u64 {
            return Err(refuse("an MSZIP block does not unpack to its announced size"));
        }
        output.truncate(wanted);
        *window = output.split_off(usize::from(length));
        Ok(window)
    }
}

/// \[MS-CAB\] 3.1: little-endian words added without carry; the last bytes count from the top.
fn sum(bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(4);
    let mut sum = 0;
    for word in &mut words {
        sum ^= word.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
    }
    sum ^ words.remainder().iter().fold(0, |word, byte| (word << 8) | u32::from(*byte))
}
