// Hands a message in with nodemailer: reads {"transport": {...}, "from": ..., "to": [...], "message": base64} from stdin,
// and writes {"reply": ...} or {"code": ..., "reply": ...} to stdout. Its argument is the folder of nodemailer.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');

const nodemailer = createRequire(path.join(process.argv[2], 'package.json'))('nodemailer');

const task = JSON.parse(fs.readFileSync(0, 'utf8'));
nodemailer
    .createTransport(task.transport)
    .sendMail({ envelope: { from: task.from, to: task.to }, raw: Buffer.from(task.message, 'base64') })
    .then(
        ({ response }) => ({ reply: response }),
        ({ code, response }) => ({ code, reply: response || '' })
    )
    .then((found) => process.stdout.write(JSON.stringify(found)));
