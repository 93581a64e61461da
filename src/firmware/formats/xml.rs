//! A small XML document in memory, within limits: size, depth, elements, attributes.
//!
//! A document type definition is refused, so there are no entities but the five of XML and character references, and
//! nothing outside the file is ever asked for.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

use super::error::{Fault, FormatError};

const DEPTH_MAX: usize = 64;
const ELEMENTS_MAX: u64 = 200_000;
const ATTRIBUTES_MAX: usize = 64;

/// An element.
#[derive(Debug, Default)]
pub struct Element {
    /// Its name without a namespace prefix.
    pub name: String,
    /// Its own text, without that of its children.
    pub text: String,
    /// The elements in it.
    pub children: Vec<Self>,
    attributes: Vec<(String, String)>,
}

impl Element {
    /// An attribute that is there and not empty.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// The children of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first child of a name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The first element at the end of a path of names.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    /// Its text without surrounding blanks; none when there is no other.
    pub fn words(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }

    /// The text of a child.
    pub fn text_of(&self, name: &str) -> Option<String> {
        self.child(name).and_then(Self::words).map(str::to_owned)
    }

    /// Paragraphs and lists as plain text, one a line.
    pub fn prose(&self) -> Option<String> {
        let mut lines = Vec::new();
        self.lines(&mut lines);
        Some(lines.join("\n")).filter(|text| !text.is_empty())
    }

    fn lines(&self, into: &mut Vec<String>) {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        if !words.is_empty() {
            let mark = if self.name == "li" { "- " } else { "" };
            into.push(format!("{mark}{}", words.join(" ")));
        }
        self.children.iter().for_each(|child| child.lines(into));
    }
}

/// Reads a document; `file` stands for it in errors.
///
/// # Errors
/// With the offset in the document.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Element, FormatError> {
    let error = |offset: u64, fault| FormatError { file: file.to_owned(), offset: Some(offset), fault };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|e| error(e.valid_up_to() as u64, Fault::Malformed("this is not UTF-8".into())))?;
    let mut reader = Reader::from_str(text);
    let mut tree = Tree::default();
    loop {
        let event = reader
            .read_event()
            .map_err(|e| error(reader.error_position(), Fault::Malformed(e.to_string())))?;
        let done = tree.take(event).map_err(|fault| error(reader.buffer_position(), fault))?;
        if let Some(root) = done {
            return Ok(root);
        }
    }
}

/// The elements that are open, outermost first.
#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    root: Option<Element>,
    elements: u64,
}

impl Tree {
    /// The root element once the document ends.
    fn take(&mut self, event: Event<'_>) -> Result<Option<Element>, Fault> {
        match event {
            Event::Start(start) => {
                let element = self.element(&start)?;
                self.open.push(element);
                let limit = DEPTH_MAX as u64;
                if self.open.len() > DEPTH_MAX {
                    return Err(Fault::Limit { what: "the depth of elements", found: limit + 1, limit });
                }
            }
            Event::Empty(start) => {
                let element = self.element(&start)?;
                self.close(element)?;
            }
            Event::End(_) => match self.open.pop() {
                Some(element) => self.close(element)?,
                None => return Err(Fault::Malformed("an element is closed that was not opened".into())),
            },
            Event::Text(text) => self.text(&text.xml10_content())?,
            Event::CData(text) => self.text(&text.xml10_content())?,
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(character)) => character.to_string(),
                    Ok(None) => resolve_predefined_entity(&reference)
                        .map(str::to_owned)
                        .ok_or_else(|| Fault::Malformed("an entity that is not one of XML's own".into()))?,
                    Err(error) => return Err(Fault::Malformed(error.to_string())),
                };
                self.text(&resolved)?;
            }
            Event::DocType(_) => return Err(Fault::Unsupported("a document type definition".into())),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if !self.open.is_empty() => return Err(Fault::Truncated("an element")),
            Event::Eof => {
                return self.root.take().map(Some).ok_or_else(|| Fault::Missing("the root element".into()));
            }
        }
        Ok(None)
    }

    fn element(&mut self, start: &BytesStart<'_>) -> Result<Element, Fault> {
        self.elements += 1;
        if self.elements > ELEMENTS_MAX {
            let found = self.elements;
            return Err(Fault::Limit { what: "the number of elements", found, limit: ELEMENTS_MAX });
        }
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| Fault::Malformed(e.to_string()))?;
            let value = attribute
                .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                .map_err(|e| Fault::Malformed(e.to_string()))?;
            attributes.push((attribute.key.local_name().as_ref().to_owned(), value.into_owned()));
            let limit = ATTRIBUTES_MAX as u64;
            if attributes.len() > ATTRIBUTES_MAX {
                return Err(Fault::Limit { what: "the number of attributes", found: limit + 1, limit });
            }
        }
        Ok(Element { name: start.local_name().as_ref().to_owned(), attributes, ..Element::default() })
    }

    fn close(&mut self, element: Element) -> Result<(), Fault> {
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if self.root.is_some() => {
                return Err(Fault::Malformed("there is more than one root element".into()));
            }
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Fault> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(Fault::Malformed("there is text outside the root element".into())),
        }
        Ok(())
    }
}
