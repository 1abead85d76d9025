-- Reads approval requests and their status.
-- ARGV    approval ids
-- Returns for each: state, time of the decision or deadline, request, decision, votes, time of the
-- request, now, percent of its time at the latest warning, and the nonce of the request.
-- For an unknown request only the state.
-- For an unreadable record: 'unreadable' and the reason. The other records are still returned.
local now, result = now_in_ms(), {}
local function read(id)
  local state, at, is_same = status(id, now)
  local request = redis.call('HMGET', REQUEST .. id, 'document', 'at', 'nonce')
  local record = redis.call('HMGET', DECISION .. id, 'document', 'votes', 'warned')
  return { state, whole(at), request[1] or '', is_same and record[1] or '',
    is_same and record[2] or '0', request[2] or '0', whole(now), is_same and record[3] or '',
    request[3] or '' }
end
for _, id in ipairs(ARGV) do
  local is_read, row = pcall(read, id)
  if not is_read then
    row = { 'unreadable', type(row) == 'table' and row.err or tostring(row) }
  end
  result[#result + 1] = row
end
return result
