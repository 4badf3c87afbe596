#!/bin/sh
# Made the certificates and the key of this folder, once: those of a private CA that nobody trusts, valid from 2020 to 2120, for
# 127.0.0.1 and no other name. They protect nothing, so the key may be read by all. Run it in this folder to make them anew.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$work/index.txt"
cat > "$work/ca.cnf" <<END
[ca]
default_ca = test
[test]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = policy
default_startdate = 20200101000000Z
default_enddate = 21200101000000Z
[policy]
commonName = supplied
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1
END
key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -new $key -keyout "$work/ca.key" -out "$work/ca.csr" -subj "/CN=broadcastd test CA"
openssl ca -batch -notext -config "$work/ca.cnf" -selfsign -keyfile "$work/ca.key" \
  -extensions authority -in "$work/ca.csr" -out ca.pem
openssl req -new $key -keyout server.key -out "$work/server.csr" -subj "/CN=broadcastd test server"
openssl ca -batch -notext -config "$work/ca.cnf" -cert ca.pem -keyfile "$work/ca.key" \
  -extensions server -in "$work/server.csr" -out server.pem
