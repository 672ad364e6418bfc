//! Databases for tests: an empty SQLite file or an empty PostgreSQL database for each test. PostgreSQL
//! is the server that POOL_TEST_POSTGRES names (`postgres://user[:password]@host:port/database`, who
//! may create databases), or one that is started here on a free loopback port and ends with the test
//! process, however that ends.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pool::store::Store;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// An empty database of one test.
pub(crate) struct Database {
    pub(crate) url: String,
    kind: Kind,
}

enum Kind {
    Sqlite { _folder: TempDir },
    Postgres { name: String },
}

impl Database {
    pub(crate) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("made/by/open/pool.sqlite").display());
        Self { url, kind: Kind::Sqlite { _folder: folder } }
    }

    pub(crate) async fn postgres() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pool_test_{}_{count}", std::process::id());
        let mut admin = PgConnection::connect(&server().url).await.unwrap();
        let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'");
        admin.execute(AssertSqlSafe(create)).await.unwrap();
        let (before, _) = server().url.rsplit_once('/').expect("a URL ends in /database");
        Self { url: format!("{before}/{name}"), kind: Kind::Postgres { name } }
    }

    /// Another empty one of the same kind.
    pub(crate) async fn another(&self) -> Self {
        match self.kind {
            Kind::Sqlite { .. } => Self::sqlite().await,
            Kind::Postgres { .. } => Self::postgres().await,
        }
    }

    pub(crate) async fn open(&self) -> Store {
        Store::open(&self.url).await.unwrap()
    }

    /// A statement past the store, over a connection of its own.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.kind {
            Kind::Sqlite { .. } => {
                let options: sqlx::sqlite::SqliteConnectOptions = self.url.parse().unwrap();
                let mut connection: SqliteConnection = options.connect().await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
            Kind::Postgres { .. } => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                connection.execute(sql).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Takes a PostgreSQL database off its server.
    pub(crate) async fn end(self) {
        if let Kind::Postgres { name } = &self.kind {
            let mut admin = PgConnection::connect(&server().url).await.unwrap();
            let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
            admin.execute(drop).await.unwrap();
        }
    }
}

/// Whether the tests of PostgreSQL are wanted: always, unless somebody said no in so many words.
pub(crate) fn postgres_is_wanted() -> bool {
    let skip = std::env::var("POOL_TEST_SKIP_POSTGRES").is_ok_and(|value| value == "1");
    if skip {
        eprintln!("POOL_TEST_SKIP_POSTGRES=1: NOT TESTED ON POSTGRESQL");
    }
    !skip
}

struct Server {
    url: String,
    /// Its standard input is the server's life line: it closes with this process.
    _life: Option<Child>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var("POOL_TEST_POSTGRES") {
        Ok(url) => Server { url, _life: None },
        Err(_) => {
            // A free port may be taken by another in the moment between.
            let started = (0..5).find_map(|_| start_server());
            started.expect("PostgreSQL could not be started; see its messages above")
        }
    })
}

/// Runs as a user that is not root, which PostgreSQL insists on; says `ready` when it accepts; then
/// waits for the end of its input.
const RUN_SERVER: &str = r#"
    bin=$1 port=$2
    folder=$(mktemp -d) || exit 1
    cd "$folder"
    trap '"$bin/pg_ctl" -D data -m immediate stop >/dev/null 2>&1; rm -rf "$folder"' EXIT
    trap '' INT TERM HUP
    "$bin/initdb" -D data -U pool -A trust -E UTF8 --locale=C.UTF-8 --no-sync >initdb.log 2>&1 ||
        { cat initdb.log >&2; exit 1; }
    "$bin/pg_ctl" -D data -w -l server.log -o "-p $port -k $folder \
        -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300" start >/dev/null 2>&1 ||
        { cat server.log >&2; exit 1; }
    echo ready
    cat >/dev/null
"#;

fn start_server() -> Option<Server> {
    let bin = newest_postgres().expect(
        "PostgreSQL is not installed (Debian: apt-get install postgresql). \
         POOL_TEST_SKIP_POSTGRES=1 leaves its tests out.",
    );
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let is_root = String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout);
    let mut command = if is_root.unwrap().trim() == "0" {
        let mut runuser = Command::new("runuser");
        runuser.args(["-u", "postgres", "--", "sh"]);
        runuser
    } else {
        Command::new("sh")
    };
    let mut life = command
        .args(["-c", RUN_SERVER, "sh", &bin, &port.to_string()])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let stdout = life.stdout.take().expect("it was asked for above");
    BufReader::new(stdout).read_line(&mut said).unwrap();
    let url = format!("postgres://pool@127.0.0.1:{port}/postgres");
    (said == "ready\n").then_some(Server { url, _life: Some(life) })
}

/// Folder of the programs of the newest version on this machine, where Debian puts them.
fn newest_postgres() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let programs = versions.filter_map(|version| {
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let bin = version.path().join("bin");
        bin.join("initdb").exists().then(|| (number, bin.display().to_string()))
    });
    programs.max().map(|(_, bin)| bin)
}
