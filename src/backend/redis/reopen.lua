-- Reverts the failure of a task that is to run again, and writes a note with the operator's name. A
-- success stays as it is, and so does a revocation unless a new message supersedes it.
-- KEYS[1] the task's key
-- KEYS[2] the stream of notes
-- ARGV    approximate limit of the stream, then fields and values of the entry
-- Returns the previous status; '' when there was none.
local stored = redis.call('GET', KEYS[1])
local status = ''
if stored then
  status = string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
  if not status then
    local decoded, document = pcall(cjson.decode, stored)
    status = decoded and type(document) == 'table' and tostring(document['status']) or '?'
  end
end
local is_superseded = ARGV[3] == 'supersede'
if status == 'SUCCESS' or (status == 'REVOKED' and not is_superseded) then
  return status
end
local entry = { 'XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*' }
for n = 2, #ARGV do
  entry[#entry + 1] = ARGV[n]
end
entry[#entry + 1] = 'was'
entry[#entry + 1] = string.sub(stored or '', 1, 1024)
redis.call(unpack(entry))
if status == 'FAILURE' or status == 'REVOKED' then
  redis.call('DEL', KEYS[1])
end
return status
