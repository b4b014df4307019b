"""SASL on the server's side, without I/O: octets from the client in; what has to be looked up or checked, out."""
