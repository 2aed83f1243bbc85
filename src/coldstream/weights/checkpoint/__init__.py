"""What lies in a bucket's folder: its URI, its files' headers, and the plan that reads them."""
