// What mailauth finds of messages: reads {"mails": [...], "dns": "127.0.0.1:port", "receiver": name} from stdin, and
// writes a list of findings, in the same order, to stdout. Its argument is the folder that mailauth is installed in.
//
// In strict mode, in which mailauth follows the RFCs to the letter; without BIMI, of which we know nothing.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');
const dns = require('node:dns').promises;

const { authenticate } = createRequire(path.join(process.argv[2], 'package.json'))('mailauth');

const finding = ({ dkim, spf, arc, dmarc }) => ({
    spf: spf.status.result,
    dkim: dkim.results.map(({ status, signingDomain }) => ({ result: status.result, domain: signingDomain || '' })),
    arc: arc.status.result,
    dmarc: dmarc
        ? { result: dmarc.status.result, policy: dmarc.policy || '', domain: dmarc.policyDomain || '' }
        : { result: 'no author', policy: '', domain: '' }
});

const main = async ({ mails, dns: server, receiver }) => {
    const resolver = new dns.Resolver({ timeout: 5000, tries: 3 });
    resolver.setServers([server]);
    const findings = [];
    for (const { message, ip, helo, sender } of mails) {
        const found = await authenticate(Buffer.from(message, 'base64'), {
            ip,
            helo,
            sender,
            mta: receiver,
            strict: true,
            disableBimi: true,
            resolver: (name, type) => resolver.resolve(name, type)
        });
        findings.push(finding(found));
    }
    fs.writeSync(1, JSON.stringify(findings));
};

main(JSON.parse(fs.readFileSync(0, 'utf8')));
