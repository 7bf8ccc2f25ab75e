"""The sample pharmacy in SQLite: what databases.py does for PostgreSQL, beside sqlite3's .dump."""

from database_servers import SQLite
from databases import main

if __name__ == "__main__":
    main(SQLite)
