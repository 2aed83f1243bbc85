"""What a task with `sql_schema` is limited to: one SELECT over the tables that a request shows."""
