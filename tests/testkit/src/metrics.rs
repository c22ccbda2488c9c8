//! What a server's admin port measures, as a scraper reads it.

use std::collections::BTreeMap;

use crate::http::Http;

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Families and their types, as they are announced.
    pub types: BTreeMap<String, String>,
    /// Values by name and labels, `name{label="value"}`.
    pub values: BTreeMap<String, f64>,
}

impl Metrics {
    /// Asks an admin port.
    pub async fn read(admin: &str) -> Self {
        let page = Http::new(admin).get("/metrics", &[]).await;
        assert_eq!(page.status, 200, "{}", page.text);
        Self::parse(&page.text)
    }

    /// Reads a page.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').expect("a name and a type");
                found.types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                let value = value.parse().expect("a number");
                let twice = found.values.insert(name.to_owned(), value);
                assert!(twice.is_none(), "{name} stands there twice");
            }
        }
        found
    }

    /// A metric, all its series together; 0 when there is none.
    pub fn sum(&self, name: &str) -> f64 {
        let series = self.values.iter();
        let series = series.filter(|(series, _)| series.split('{').next() == Some(name));
        series.map(|(_, value)| value).sum()
    }

    /// The largest of its series; 0 when there is none.
    pub fn max(&self, name: &str) -> f64 {
        let series = self.values.iter();
        let series = series.filter(|(series, _)| series.split('{').next() == Some(name));
        series.map(|(_, value)| *value).fold(0.0, f64::max)
    }
}
