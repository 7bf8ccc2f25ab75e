"""The sample pharmacy in MariaDB: what databases.py does for PostgreSQL."""

from database_servers import MariaDB
from databases import main

if __name__ == "__main__":
    main(MariaDB)
